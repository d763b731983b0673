"""Search spaces: each has a folder with its genotype, supernet, derived network and drawings.

To add a space, add its folder, a line to `autoreid.spaces.build.SPACES`, one to `autoreid.spaces.genotypes.GENOTYPES`,
and its settings to `autoreid.config.spaces`.
"""
