"""``python -m hasten.platform``: the same as the command ``hasten``, for torchrun and others."""

from hasten.platform.cli import main

if __name__ == "__main__":
    main()
