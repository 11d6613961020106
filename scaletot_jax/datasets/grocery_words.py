"""Plain words for the department and category codes of the Complete Journey product table.

The codes are shop-floor abbreviations ("FRZN MEAT/MEAT DINNERS"). A language model knows "frozen meat", so each becomes
a short lower-case phrase; codes that say the same thing become one.
"""

from __future__ import annotations

import re

OTHER = "other"

DEPARTMENTS = {
    "GROCERY": "groceries",
    "DRUG GM": "drugstore and household",
    "FUEL": "fuel",
    "PRODUCE": "fruit and vegetables",
    "MEAT": "fresh meat",
    "MEAT-PCKGD": "packaged meat",
    "DELI": "deli",
    "PASTRY": "bakery",
    "NUTRITION": "health food",
    "SEAFOOD": "seafood",
    "SEAFOOD-PCKGD": "seafood",
    "FLORAL": "flowers",
    "COSMETICS": "cosmetics",
    "SALAD BAR": "salad bar",
    "CHEF SHOPPE": "prepared meals",
    "RESTAURANT": "prepared meals",
    "SPIRITS": "spirits",
    "GARDEN CENTER": "garden",
    "TRAVEL & LEISURE": "travel and leisure",
    "FROZEN GROCERY": "groceries",
}

# Codes that a rule cannot read.
_CATEGORIES = {
    "BAG SNACKS": "chips and snacks",
    "WAREHOUSE SNACKS": "chips and snacks",
    "CHIPS&SNACKS": "chips and snacks",
    "PACKAGED NATURAL SNACKS": "natural snacks",
    "CONVENIENT BRKFST/WHLSM SNACKS": "breakfast bars",
    "CRACKERS/MISC BKD FD": "crackers",
    "DINNER MXS:DRY": "dinner mixes",
    "DRY BN/VEG/POTATO/RICE": "rice and beans",
    "DRY NOODLES/PASTA": "pasta",
    "DRY TEA/COFFEE/COCO MIX": "tea and cocoa",
    "FD WRAPS/BAGS/TRSH BG": "food wraps and bags",
    "FACIAL TISS/DNR NAPKIN": "tissues and napkins",
    "FLUID MILK PRODUCTS": "milk",
    "FRZN JCE CONC/DRNKS": "frozen juice",
    "FRZN NOVELTIES/WTR ICE": "frozen treats",
    "FRZN VEGETABLE/VEG DSH": "frozen vegetables",
    "HEAT/SERVE": "ready meals",
    "HISPANIC": "hispanic food",
    "ISOTONIC DRINKS": "sports drinks",
    "MEAT - MISC": "packaged meat",
    "MEAT - SHELF STABLE": "canned meat",
    "SEAFOOD - SHELF STABLE": "canned seafood",
    "SEAFOOD - FROZEN": "frozen seafood",
    "FRUIT - SHELF STABLE": "canned fruit",
    "VEGETABLES - SHELF STABLE": "canned vegetables",
    "VEGETABLES - ALL OTHERS": "vegetables",
    "VEGETABLES SALAD": "salad vegetables",
    "ORGANICS FRUIT & VEGETABLES": "organic fruit and vegetables",
    "VALUE ADDED FRUIT": "cut fruit",
    "VALUE ADDED VEGETABLES": "cut vegetables",
    "MILK BY-PRODUCTS": "cream and sour cream",
    "MISC. DAIRY": "dairy",
    "PNT BTR/JELLY/JAMS": "peanut butter and jam",
    "PWDR/CRYSTL DRNK MX": "drink mixes",
    "REFRGRATD DOUGH PRODUCTS": "chilled dough",
    "REFRGRATD JUICES/DRNKS": "chilled juice",
    "NDAIRY/TEAS/JUICE/SOD": "non-dairy drinks",
    "REFRIGERATED": "chilled health food",
    "PROCESSED": "processed food",
    "RW FRESH PROCESSED MEAT": "fresh meat",
    "SALD DRSNG/SNDWCH SPRD": "salad dressing",
    "SNKS/CKYS/CRKR/CNDY": "snacks and candy",
    "COFFEE SHOP SWEET GOODS&RETAIL": "coffee shop",
    "GREETING CARDS/WRAP/PARTY SPLY": "greeting cards",
    "DIAPERS & DISPOSABLES": "diapers",
    "SOAP - LIQUID & BAR": "soap",
    "WATER - CARBONATED/FLVRD DRINK": "water",
    "ICE CREAM/MILK/SHERBTS": "ice cream",
    "J-HOOKS": "household goods",
    "BABYFOOD": "baby foods",
    "CANDY - CHECKLANE": "candy",
    "CANDY - PACKAGED": "candy",
    "CHEESES": "cheese",
    "CHICKEN/POULTRY": "chicken",
    "PIES": "cakes and pies",
    "CAKES": "cakes and pies",
    "BEERS/ALES": "beer",
    "DOMESTIC WINE": "wine",
    "IMPORTED WINE": "wine",
    "MISC WINE": "wine",
    "LUNCHMEAT": "lunch meat",
    "NEW AGE": "bottled drinks",
    "HAND/BODY/FACIAL PRODUCTS": "skin care",
    "SPRING/SUMMER SEASONAL": "summer goods",
    "AUDIO/VIDEO PRODUCTS": "music and video",
    "NON-DAIRY BEVERAGES": "non-dairy drinks",
    "IN-STORE PHOTOFINISHING": "photo prints",
    "OVERNIGHT PHOTOFINISHING": "photo prints",
    "PREPARED/PKGD FOODS": "prepared food",
    "FROZEN": "frozen food",
    "FROZEN - BOXED(GROCERY)": "frozen food",
    "BATH": "bath products",
    "PICKLE/RELISH/PKLD VEG": "pickles",
    "SPORTS MEMORABLILIA": "sports memorabilia",
    "TOBACCO OTHER": "tobacco",
    "FLORAL-FRESH CUT": "flowers",
    "FLORAL-FLOWERING PLANTS": "flowers",
    "FLORAL-FOLIAGE PLANTS": "house plants",
    "FLORAL-ACCESSORIES": "flowers",
    "FLORAL- HARD GOODS": "flowers",
    "FLORAL BALLOONS": "balloons",
    "BOUQUET (NON ROSE)": "flowers",
    "ROSES": "flowers",
    "CONTINUITIES": None,
    "MISCELLANEOUS": None,
    "COUPON": None,
    "COUPON/MISC ITEMS": None,
    "COUPONS/STORE & MFG": None,
    "MISCELLANEOUS HBC": None,
    "NON EDIBLE PRODUCTS": None,
    "PROD SUPPLIES": None,
    "MEAT SUPPLIES": None,
    "DELI SUPPLIES": None,
    "BOTTLE DEPOSITS": None,
}

_ABBREVIATIONS = {
    "frzn": "frozen",
    "cleang": "cleaning",
    "sweetners": "sweeteners",
    "hbc": "care",
    "suppplies": "supplies",
}


def department_words(department: str | None) -> str:
    """Words for a department code; ``other`` for the rare ones."""
    return DEPARTMENTS.get(department or "", OTHER)


def category_words(department: str | None, category: str | None, product_type: str | None) -> str | None:
    """Words for a product's category, or None where it says nothing about the product.

    Fuel is booked under "COUPON/MISC ITEMS", in two departments; its product type tells.
    """
    if department == "FUEL" or (product_type or "").startswith("GASOLINE"):
        return "fuel"
    if category is None:
        return None
    if category in _CATEGORIES:
        return _CATEGORIES[category]
    head = re.split(r"/| - |- |-(?=[A-Z])|\(|:", category)[0].lower().replace("&", " and ")
    words = [_ABBREVIATIONS.get(word, word) for word in head.replace(".", " ").split()]
    return " ".join(words) or None
