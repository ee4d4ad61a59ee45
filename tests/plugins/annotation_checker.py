"""How annotations are checked while tests run: whole numbers are taken for floating ones, as type checkers do."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
