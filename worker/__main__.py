"""`python -m worker`, the same as the command `teamturn`."""

from teamturn import main

if __name__ == "__main__":
    main()
