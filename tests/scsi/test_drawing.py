from vstore.scsi.drawing import Place, drawing


def test_fields_stand_under_their_bits_and_bytes_that_are_alike_are_drawn_once() -> None:
    places = [Place("CODE", 0, 7, 8), Place("A", 1, 7, 1), Place("LBA", 1, 4, 21), Place("LENGTH", 6, 7, 8)]
    drawn = "\n".join(drawing(places, 7))
    assert drawn == (
        "```\n"
        " byte |   7    |   6    |   5    |   4    |   3    |   2    |   1    |   0    |\n"
        "======+========+========+========+========+========+========+========+========+\n"
        "    0 |                                  CODE                                 |\n"
        "------+--------+--------+--------+--------+--------+--------+--------+--------+\n"
        "    1 |   A    |     reserved    |                    LBA                     |\n"
        "------+--------+--------+--------+--------+--------+--------+--------+--------+\n"
        "  2-3 |                                  LBA                                  |\n"
        "------+--------+--------+--------+--------+--------+--------+--------+--------+\n"
        "  4-5 |                                reserved                               |\n"
        "------+--------+--------+--------+--------+--------+--------+--------+--------+\n"
        "    6 |                                 LENGTH                                |\n"
        "------+--------+--------+--------+--------+--------+--------+--------+--------+\n"
        "```\n"
    )


def test_a_name_too_long_for_its_bits_is_wrapped() -> None:
    lines = list(drawing([Place("LONG NAME OF A BIT", 0, 7, 1)], 1))[3:6]
    assert [line[:16] for line in lines] == ["    0 |  LONG  |", "      |NAME OF |", "      | A BIT  |"]
