"""`python -m keras_sat` is the command `keras-sat`."""

import sys

from keras_sat import cli

if __name__ == "__main__":
    sys.argv[0] = "keras-sat"
    cli.main()
