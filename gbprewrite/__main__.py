"""python -m gbprewrite"""

from gbprewrite.cli import main

if __name__ == "__main__":
    main(prog_name="gbprewrite")
