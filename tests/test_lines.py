import io

import pytest

from keras_sat import lines


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_in_a_file_each_text_is_a_line_of_its_own_and_most_are_left_out():
    stream = io.StringIO()
    line = lines.Line(stream, every=1000.0)
    line.show("begin", is_due=True)
    line.show("1 of 3")
    line.show(lambda: 1 / 0)
    line.show("3 of 3", is_due=True)
    line.write("3 of 3")
    line.close()
    assert stream.getvalue() == "begin\n3 of 3\n"


def test_on_a_terminal_a_text_replaces_the_one_before():
    stream = Terminal()
    line = lines.Line(stream)
    line.show("a longer text", is_due=True)
    line.show("short", is_due=True)
    line.write("end")
    line.show("again", is_due=True)
    line.close()
    line.close()
    assert stream.getvalue() == "\ra longer text\rshort        \rend  \n\ragain\n"


def test_disabled_it_writes_nothing():
    stream = io.StringIO()
    line = lines.Line(stream, enabled=False)
    line.show("text", is_due=True)
    line.write("end")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7800, "2 h 10 min"), (101_000, "1 d 4 h")],
)
def test_duration(seconds, text):
    assert lines.duration(seconds) == text
