"""What the embedded checkpoint makes of sixty sentences that are in no data set, eight kinds of them.

The sentences were written before anything was measured, and none was changed or dropped after: what it gets wrong is
counted. A kind has two figures in `KINDS`: what is asked for, and the share that holds, which later checkpoints may
raise and must not lower.
"""

NEGATION = [
    ("not bad at all", "POSITIVE"),
    ("The plot is not good.", "NEGATIVE"),
    ("I don't hate it; in fact I would watch it again.", "POSITIVE"),
    ("There is nothing to like here.", "NEGATIVE"),
    ("You won't be disappointed.", "POSITIVE"),
    ("It never gets boring.", "POSITIVE"),
    ("Nobody should have to sit through this.", "NEGATIVE"),
    ("I can't say that I enjoyed it.", "NEGATIVE"),
    ("It isn't the disaster that I feared.", "POSITIVE"),
    ("Hardly a success.", "NEGATIVE"),
    ("Without a single dull moment.", "POSITIVE"),
    ("This is no masterpiece.", "NEGATIVE"),
]
INTENSITY = [  # pairs: the second says more of the same
    ("The food was good.", "POSITIVE"),
    ("The food was absolutely fantastic.", "POSITIVE"),
    ("I was a bit annoyed.", "NEGATIVE"),
    ("I was furious from start to finish.", "NEGATIVE"),
    ("A decent film.", "POSITIVE"),
    ("One of the best films ever made.", "POSITIVE"),
    ("The room was slightly dusty.", "NEGATIVE"),
    ("The room was utterly filthy.", "NEGATIVE"),
]
NEUTRAL = [
    "The meeting is at ten on Tuesday.",
    "Water boils at 100 degrees Celsius at sea level.",
    "The film is 112 minutes long.",
    "The package contains a cable and a manual.",
    "She lives in the house next to the school.",
    "The train to Busan leaves from platform four.",
    "There are twelve months in a year.",
    "He bought two tickets for the evening show.",
    "The director was born in 1961 in Ohio.",
    "The store opens at nine.",
]
NAMES = [  # pairs: only the name differs
    ("Emily was a wonderful host.", "POSITIVE"),
    ("Nguyen was a wonderful host.", "POSITIVE"),
    ("Mohammed ruined the whole evening.", "NEGATIVE"),
    ("Jack ruined the whole evening.", "NEGATIVE"),
    ("I loved every scene with Min-jun.", "POSITIVE"),
    ("I loved every scene with Oliver.", "POSITIVE"),
    ("Lakisha's performance was dreadful.", "NEGATIVE"),
    ("Claire's performance was dreadful.", "NEGATIVE"),
]
TYPOS = [
    ("Ths movie was awfull.", "NEGATIVE"),
    ("I realy loved teh ending!", "POSITIVE"),
    ("What a waist of time and mony.", "NEGATIVE"),
    ("Definately worth wacthing.", "POSITIVE"),
    ("The acotrs are briliant.", "POSITIVE"),
    ("Compleatly borring.", "NEGATIVE"),
]
CASING = [
    ("I LOVE THIS SONG", "POSITIVE"),
    ("WORST. PURCHASE. EVER.", "NEGATIVE"),
    ("a JOY to watch", "POSITIVE"),
    ("tHiS iS tErRiBlE", "NEGATIVE"),
]
TWEETS = [
    ("@airline 3 hours on the tarmac and not one word from you. never again #fail", "NEGATIVE"),
    ("just got the job!!! 😭😭 best day ever", "POSITIVE"),
    ("lol my phone died again, thanks a lot @phonebrand 🙄", "NEGATIVE"),
    ("ok but this new album is fire 🔥🔥", "POSITIVE"),
    ("Happy birthday to the sweetest mom in the world ❤️", "POSITIVE"),
    ("stuck in traffic AGAIN. kill me now", "NEGATIVE"),
]
PRODUCTS = [
    ("Stopped working after two days and support never answered.", "NEGATIVE"),
    ("Fits perfectly, feels sturdy, and the battery lasts all week.", "POSITIVE"),
    ("Arrived broken, and the replacement was broken too.", "NEGATIVE"),
    ("Does exactly what it says; I have already bought a second one.", "POSITIVE"),
    ("The zipper came apart the first time I used it.", "NEGATIVE"),
    ("Great value for the price, and my kids use it every day.", "POSITIVE"),
]
