"""The pools that the skills draw from: words, names, cities, and made-up words.

Made-up words are there so that the model learns to spell, copy and reverse, not to recite.
"""

from random import Random


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COMMON_WORDS = _listed(
    """
    able acid air angle animal ant apple april arm arrow art aunt autumn baby back bag ball
    banana band bank barn basket bath beach bean bear bed bee bell belt bench berry bike bird
    birth black blanket block blue board boat body bone book boot bottle bowl box boy branch
    brave bread brick bridge bright brother brown brush bucket bug bus butter button cabin cake
    camel camera camp candle candy captain car card carpet carrot castle cat chain chair chalk
    cheese cherry chess chicken child circle city class clean clock cloth cloud coat coffee coin
    cold color comb cook copper corn cotton cousin cow crab crown cup curtain dance dark daisy
    desk diamond dinner dish doctor dog doll donkey door dragon dream dress drum duck dust eagle
    ear earth east egg elbow energy engine evening eye fabric face family farm father feather
    fence field finger fire fish flag flame floor flower flute fog forest fork fox friend frog
    fruit garden garlic gate ghost giant gift ginger giraffe girl glass glove goat gold grape
    grass green guitar hair hammer hand harbor hat heart helmet hill holiday honey horse hotel
    house ice insect iron island ivory jacket jam jar jelly jewel joke juice jungle jump kettle
    key king kitchen kite kitten knee knife ladder lake lamb lamp laptop leaf leather lemon
    letter light lily lime lion lip lizard lock log lunch machine magic magnet mango map marble
    market mask melon metal milk mirror money monkey moon morning mother mouse mouth music nail
    napkin neck needle nest night noise north nose number nut oak ocean office oil olive onion
    orange oven owl paint palace pan paper parrot pasta path peach pear pearl pen pencil pepper
    piano picture pig pillow pilot pirate pizza plane planet plant plate pocket poem pond potato
    prince puppy purple puzzle queen quick quiet rabbit radio rain rainbow raven ribbon rice
    ring river road robot rocket roof room root rope rose ruler sail salad salt sand school sea
    seed shadow sheep shell ship shirt shoe silver sister skate sky sleep smile smoke snail
    snake snow soap sock soup south spider spoon spring square star station stone store storm
    story street student sugar summer sun swan table tail tea teacher tent thunder tiger toast
    tomato tooth tower town toy train tree truck tulip tunnel turtle umbrella uncle valley van
    velvet village violin voice wagon wall walnut water wave whale wheat wheel whistle window
    winter wolf wood wool world yard year yellow yogurt zebra zero
    """
)

NAMES = _listed(
    """
    Ada Ahmad Aisha Alan Alice Amir Ana Anna Ben Bob Carla Carlos Chloe Daniel David Diana Elena
    Emma Eric Eva Farah Felix Fiona George Grace Hana Hannah Henry Hugo Ines Isaac Ivan Jack
    James Jane Jin John Julia Karen Kenji Lara Laura Leo Lily Lina Lucas Lucy Maria Mark Maya
    Mei Mia Nadia Nina Noah Nora Olga Oliver Omar Oscar Paul Peter Priya Rania Ravi Rosa Ruth
    Sam Sara Siti Sofia Tariq Tom Uma Vera Victor Wei Yara Yusuf Zoe
    """
)

CITIES = _listed(
    """
    Accra Amsterdam Ankara Athens Baghdad Baku Bangkok Barcelona Beijing Berlin Boston Brussels
    Cairo Chicago Dakar Delhi Denver Dhaka Dublin Geneva Hamburg Hanoi Havana Helsinki Ipoh
    Istanbul Jakarta Johor Kyoto Lagos Lima Lisbon London Lyon Madrid Manila Miami Milan
    Montreal Moscow Mumbai Munich Nairobi Naples Osaka Oslo Paris Penang Prague Riga Rome
    Santiago Seattle Seoul Shanghai Sydney Taipei Tehran Tokyo Toronto Tunis Venice Vienna Warsaw
    """
)

_ONSETS = _listed("b c d f g h j k l m n p r s t v w y z")
_CLUSTERS = _listed("bl br ch cl cr dr fl fr gl gr pl pr sh sl sn sp st th tr qu")
_VOWELS = _listed("a a e e i i o o u ai ea ee oa oo ou")
_CODAS = _listed("b d g k l m n n p r r s t t x ck ll ng nt rd rk st")


def made_up_word(rng: Random) -> str:
    """A pronounceable word of three to seven letters; half of them blend two common words."""
    make = _blend if rng.random() < 0.5 else _syllables
    word = make(rng)
    while not 3 <= len(word) <= 7:
        word = make(rng)
    return word


def _blend(rng: Random) -> str:
    """The head of one common word with the tail of another."""
    head, tail = rng.choice(COMMON_WORDS), rng.choice(COMMON_WORDS)
    return head[: rng.randint(1, len(head) - 1)] + tail[rng.randint(1, len(tail) - 1) :]


def _syllables(rng: Random) -> str:
    return "".join(_syllable(rng) for _ in range(rng.choice((1, 2, 2, 3))))


def _syllable(rng: Random) -> str:
    onset = rng.choice(_CLUSTERS if rng.random() < 0.2 else _ONSETS)
    coda = rng.choice(_CODAS) if rng.random() < 0.4 else ""
    return onset + rng.choice(_VOWELS) + coda


def any_word(rng: Random, max_letters: int = 8) -> str:
    """A common word, or more often a made-up one."""
    word = ""
    while not 1 <= len(word) <= max_letters:
        word = rng.choice(COMMON_WORDS) if rng.random() < 0.3 else made_up_word(rng)
    return word


def any_name(rng: Random) -> str:
    """A first name, real or made up."""
    return rng.choice(NAMES) if rng.random() < 0.4 else made_up_word(rng).capitalize()


def any_city(rng: Random) -> str:
    """A city, real or made up."""
    return rng.choice(CITIES) if rng.random() < 0.4 else made_up_word(rng).capitalize()


def phrase(rng: Random, min_words: int, max_words: int) -> str:
    """Some common words in a row."""
    return " ".join(rng.sample(COMMON_WORDS, rng.randint(min_words, max_words)))
