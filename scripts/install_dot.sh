#!/bin/sh
# Install Graphviz's `dot`, which draws the genotypes, if that needs no password; otherwise print how to install it.
command -v dot > /dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    apt-get update -qq > /dev/null && apt-get install -y -qq --no-install-recommends graphviz > /dev/null && exit 0
fi
echo "The \`dot\` program is not installed: genotypes are saved as .gv files, without pictures. To draw them, install" \
     "Graphviz (apt install graphviz, or conda install graphviz) and run python -m autoreid.render searched_genotypes" >&2
