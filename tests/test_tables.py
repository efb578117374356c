from keras_sat import tables


def test_columns_are_aligned():
    assert tables.text(("attack", "n"), ("clean", "10"), ("PGD-50x10", "9")).splitlines() == [
        "attack     n",
        "clean      10",
        "PGD-50x10  9",
    ]


def test_a_table_without_rows_is_its_header():
    assert tables.text(("attack", "n")) == "attack  n"
