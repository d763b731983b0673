#!/bin/sh
# Installs Graphviz's `dot`, which draws the genotypes, where that needs no password; else says how.
command -v dot > /dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    apt-get update -qq > /dev/null && apt-get install -y -qq --no-install-recommends graphviz > /dev/null && exit 0
fi
echo "No \`dot\` program: genotypes are kept as .gv files, without pictures. Install graphviz" \
     "(apt install graphviz, conda install graphviz), then run python -m autoreid.render searched_genotypes" >&2
