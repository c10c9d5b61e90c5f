"""Words beside numbers: units, factors, currencies, and words that change the number."""

_UNITS = """
m cm mm km nm um dm ft in yd mi g kg mg ug lb lbs oz s ms ns sec secs min mins h hr hrs hours l ml dl cl gal n j kj mj w
kw mw v a ma hz khz mhz ghz pa kpa k c f mol ev kev mev gev erg ergs mph kmh kph rpm am pm sq cu sqft px kb mb gb tb ly
pc au yr yrs deg rad sr usd eur gbp rs inr cny rmb jpy cad aud chf yen pcs ea
"""
UNITS = frozenset(_UNITS.split())
"""Units of one or two letters or without a vowel; longer words count as units anyway."""

_MATHEMATICAL = """
squared cubed factorial root sqrt pi tau phi theta alpha beta gamma delta sin cos tan cot sec csc log ln exp mod modulo
plus minus times divided over more less fewer greater larger smaller higher lower above below under or to than and not
through until between half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh
sevenths eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth thousandths doubled tripled infinity
"""
MATHEMATICAL = frozenset(_MATHEMATICAL.split())
"""Words beside a number that make it another number, or several."""

_HEDGES = "approximately about around roughly exactly only just total nearly almost circa"
HEDGES = frozenset(_HEDGES.split())

FACTORS = {
    "hundred": 100, "thousand": 10**3, "thousands": 10**3, "million": 10**6, "millions": 10**6, "mn": 10**6,
    "mil": 10**6, "billion": 10**9, "billions": 10**9, "bn": 10**9, "trillion": 10**12, "lakh": 10**5, "lakhs": 10**5,
    "crore": 10**7, "crores": 10**7, "dozen": 12, "score": 20, "gross": 144,
}  # fmt: skip
SCALES = ("hundred", "thousand", "million", "billion", "trillion", "lakh", "crore")
"""Factors that are part of a number in words."""

LETTERS = {"k": "thousand", "K": "thousand", "M": "million", "B": "billion", "mn": "million", "bn": "billion"}
"""Factors written directly after a number: 3k, 1.2M."""

COUNTED = frozenset({"pair"})
"""Words that only an answer to a reference with the same word may name: 5 pairs are not 5."""

_FILLERS = "of the a an in on at by for all left per each total altogether unit and"
FILLERS = frozenset(_FILLERS.split())
"""Words beside a number that name nothing."""

SIGNS = {"minus": -1, "negative": -1}

CURRENCIES = {
    "dollar": "$", "usd": "$", "euro": "€", "eur": "€", "pound": "£", "gbp": "£", "cent": "cent", "¢": "cent",
}  # fmt: skip

SINGULARS = {"feet": "foot", "inches": "inch", "people": "person", "men": "man", "women": "woman", "children": "child"}

SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
PARTS = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10,
}  # fmt: skip
