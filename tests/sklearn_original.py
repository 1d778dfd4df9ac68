"""scikit-learn's own tests of its multilayer perceptron, with fastbp's estimators in their place: ``python tests/sklearn_original.py [pytest options]``

The installed file is read, its import of the estimators replaced, and nothing else.
"""
import sys
import tempfile
from pathlib import Path

import pytest
import sklearn.neural_network

THEIRS, OURS = "from sklearn.neural_network import MLPClassifier, MLPRegressor\n", "from fastbp.sklearn import MLPClassifier, MLPRegressor\n"


def main(options):
    source = (Path(sklearn.neural_network.__file__).parent / "tests" / "test_mlp.py").read_text()
    assert source.count(THEIRS) == 1
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "test_mlp.py"
        copy.write_text(source.replace(THEIRS, OURS))
        return pytest.main([str(copy), "-q", "--rootdir", directory, "-c", "/dev/null", "-p", "no:cacheprovider", "-p", "sklearn.conftest", *options])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
