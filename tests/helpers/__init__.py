"""What several test modules share."""

#: The environment variable with the folder of the synthetic people that have been drawn, see people.py.
DRAWN_PEOPLE = "AUTOREID_TEST_PEOPLE"
