"""espeak-ng's English accents and voice variants. The variants are split into training and held-out voices.

A family is a group of variants that differ only in pitch, echo or roughness. All variants of a family are on the same
side. No held-out voice is close to a training voice. Voices are compared by the mean and the spread of their cepstra.
If the pitch of one voice changes by 20 on espeak-ng's scale, these values change by a certain amount. Every held-out
voice differs from every training voice by more than twice this amount.
"""

from __future__ import annotations

ACCENTS: dict[str, str] = {
    "en-us": "gmw/en-US",
    "en-us-nyc": "gmw/en-US-nyc",
    "en-gb": "gmw/en",
    "en-gb-scotland": "gmw/en-GB-scotland",
    "en-gb-x-rp": "gmw/en-GB-x-rp",
    "en-gb-x-gbclan": "gmw/en-GB-x-gbclan",
    "en-gb-x-gbcwmd": "gmw/en-GB-x-gbcwmd",
    "en-029": "gmw/en-029",
}
"""Accent -> path of espeak-ng's voice file. Given the path, espeak-ng need not search the voices of all languages."""

HELD_OUT_VOICES: tuple[str, ...] = (
    # female
    *("aunty", "belinda", "f4", "linda"),
    "f1",
    # male
    *("Gene", "Gene2"),
    *("Michael", "gustave", "marcelo"),
    *("Storm", "antonio", "ed", "paul"),
)
"""Voices of the held-out side. They show how well a model generalizes to new speakers."""

TRAINING_VOICES: tuple[str, ...] = (
    # female
    *("Alicia", "Andrea", "Annie", "anika", "f2", "f3", "f5", "grandma", "shelby", "steph", "steph2", "steph3"),
    # child
    "zac",
    # male, Klatt synthesizer
    *("adam", "announcer", "benjamin", "david", "edward", "edward2", "mike2", "Reed"),
    *("klatt", "klatt2", "klatt3", "klatt4", "klatt5", "klatt6"),
    # male, near the default voice
    *("Alex", "Mike", "croak", "fast", "grandpa", "john", "m1", "m2", "m3", "m4", "m5", "m6", "norbert"),
    "pedro",
    *("Mario", "Nguyen", "m7", "m8"),
    *("max", "RicishayMax", "RicishayMax2", "RicishayMax3"),
    # male, families
    *("Diogo", "Henrique", "Hugo", "michel", "miguel"),
    *("Andy", "AnxiousAndy", "Lee"),
    *("Denis", "victor"),
    *("iven", "iven2", "iven3", "iven4"),
    *("pablo", "quincy", "rob", "robert"),
    # male, without a family
    *("Jacky", "Marco", "boris", "ian", "kaukovalta", "sandro", "travis"),
)
"""Voices of the training side."""

UNNATURAL_VOICES: tuple[str, ...] = (
    *("Demonic", "UniRobot", "anikaRobot", "Tweaky"),
    *(f"robosoft{number}" for number in ("", 2, 3, 4, 5, 6, 7, 8)),
    *("caleb", "whisper", "whisperf"),
    "Mr serious",
)
"""Robots, effects and whispers. They are on neither side of the split, but can be chosen by name."""
