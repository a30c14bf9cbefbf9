"""The words that needles, variables and word lists are made of.

Plain English words, none of them part of another, so that a string match cannot be fooled.
"""

# ruff: noqa: SIM905
from random import Random

ADJECTIVES = tuple(
    """
    amber ancient autumn bitter bold brave brief bright broken calm careful cheap clean clever cloudy
    coastal cold copper cosmic cozy crimson curious daily damp dark deep dusty eager early elegant empty
    exotic faint famous fancy fierce flat foggy fragile fresh frozen funny gentle giant giddy golden
    graceful grand green grumpy hasty heavy hidden hollow humble hungry idle jolly kind late lazy little
    lively lonely lucky magic mellow merry mighty misty modern muddy narrow neat nimble noisy nordic
    oblong odd olive orange pale patient perfect playful plain polite proud purple quick quiet
    rapid rare ready remote rich rigid royal rugged rustic salty scarlet secret serious shady sharp
    shiny silent silver simple sleepy slow smooth snowy soft solid sour spare spicy steady steep sticky
    stormy strange strong stubborn sturdy subtle sudden sunny sweet swift tall tame tender thirsty tidy tiny
    tropical upper urban useful velvet vivid wandering warm weary western wild windy wise wooden yellow young
    """.split()
)

NOUNS = tuple(
    """
    acorn airport anchor apple apron atlas badge bagel balloon banana barrel basket beacon
    beaver bench bicycle biscuit blanket bottle bracelet branch bridge bronze brook brush bucket butter
    button cabin cactus camel camera candle canoe canyon carpet castle cedar cellar chapel cherry chimney
    circle clock clover coconut comet compass cookie coral cottage cradle crayon cricket crown curtain
    daisy desert diamond dolphin donkey dragon drawer drum eagle elbow engine envelope falcon feather fiddle
    finger flame flower flute forest fountain fox garden garlic gate ginger giraffe glacier goblet
    guitar hammer harbor harvest hazel helmet hill honey horizon insect island jacket jaguar jungle
    kernel kettle kitchen kite ladder lagoon lantern lemon leopard library lizard lobster locket lotus
    magnet mango maple marble market meadow melon mirror mitten monkey moon mountain mushroom napkin
    needle nutmeg oasis ocean onion orchard otter owl oyster paddle palace panda parrot pasture peacock peanut
    pebble pencil pepper piano pigeon pillow pirate planet plum pocket pony potato prairie pumpkin puppet
    puzzle pyramid rabbit radish raven ribbon river robin rocket saddle sailor salmon sandal saturn
    shadow shovel singer sparrow spider spoon squirrel statue stone summit sunset swan tablet teapot temple
    thunder ticket tiger timber tomato trumpet tulip tunnel turtle umbrella valley village violin volcano
    wagon walnut walrus whale whistle willow window winter wizard zebra
    """.split()
)

WORDS = ADJECTIVES + NOUNS


def _coded_words(count: int) -> tuple[str, ...]:
    syllables = [c + v for c in "bdfgklmnprtvz" for v in "aeiou"]
    pairs = [first + second for first in syllables for second in syllables if first != second]
    return tuple(sorted(Random(0).sample(pairs, count)))


CODED_WORDS = _coded_words(160)
