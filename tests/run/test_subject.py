"""What an evaluation is about."""

import pytest

from keras_sat.run import subject


def test_weights_whose_preprocessing_is_not_here_are_refused():
    """Another crop would be another figure. It is refused before the dataset is read and the network is built."""
    with pytest.raises(ValueError, match="Salman2020Do_R50 on images prepared by its Res256Crop224, which is none of"):
        subject.open_weights("ResNet50", "robustbench/Salman2020Do_R50", "relu", dataset="no such folder")
