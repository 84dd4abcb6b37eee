"""Samples written by hand, as tables: what is good English, what follows, which word is meant, what comes next."""

from __future__ import annotations

# Words in an order that English has, and in one that it hasn't.
SENTENCES = (
    ("The cat slept in the barn.", "The cat the barn in slept."),
    ("Tom gave the ball to Ann.", "Tom the ball Ann to gave."),
    ("The girl can swim.", "Girl the swim can."),
    ("My sister bought a red scarf.", "My bought sister scarf red a."),
    ("The old man walked to the market.", "Walked man old the market the to."),
    ("The birds sang in the garden.", "The birds in sang garden the."),
    ("The farmer has two horses.", "The farmer horses two has."),
    ("Kate put the key on the shelf.", "Kate the key shelf on put the."),
)

# A premise with what follows from it, what may be so or not, and what cannot be so.
PREMISES = (
    ("Tom has a red ball and a blue kite.", "Tom has a kite.", "Tom is in the park.", "Tom has no ball."),
    ("The soup is hot and the bread is fresh.", "The soup is not cold.", "The bread is on the table.",
     "The bread is stale."),
    ("The dog is asleep in the kitchen.", "The dog is in the kitchen.", "The dog is old.", "The dog is awake."),
    ("Nora and Dan went to the market on Monday.", "Dan went to the market.", "Nora bought a cake at the market.",
     "Nora stayed at home all day on Monday."),
    ("The door of the shop is closed.", "The shop has a door.", "The shop sells bread.", "The door is open."),
    ("All the cups on the table are full.", "No cup on the table is empty.", "There are five cups on the table.",
     "One of the cups on the table is empty."),
    ("Ann is the mother of Kate.", "Kate is the daughter of Ann.", "Kate is a teacher.", "Ann is younger than Kate."),
    ("Eric was the first to arrive at the station.", "Eric arrived at the station.", "Eric took a train.",
     "Somebody arrived at the station before Eric."),
    ("The baker sold every loaf before noon.", "The baker sold some bread.", "The bread was cheap.",
     "Nobody bought bread from the baker."),
    ("It is dark and there is nobody in the street.", "There is no boy in the street.", "It is raining.",
     "A boy is running down the street."),
    ("Luke is taller than Sam.", "Sam is shorter than Luke.", "Luke is a doctor.", "Sam is taller than Luke."),
    ("Mei cannot swim.", "Mei is not able to swim.", "Mei lives near a lake.", "Mei swims every day."),
)  # fmt: skip

# A premise with what follows from it, and what does not.
ENTAILED = (
    ("Henry gave his drum to Clara, and she took it home.", "Clara got a drum.", "Clara gave a drum to Henry."),
    ("The horse is bigger than the sheep.", "The sheep is smaller.", "The sheep is bigger."),
    ("Paul sold the clock to Vera.", "Vera bought the clock.", "Paul bought the clock."),
    ("The children went into the forest with their uncle.", "The uncle was in the forest.", "The children were alone."),
    ("There are four apples and three pears in the basket.", "There is fruit in the basket.",
     "There are more pears than apples in the basket."),
    ("Julia won the game, and Luke lost it.", "Luke did not win the game.", "Luke won the game."),
    ("The farmer sold a cow at the market.", "The farmer was at the market.", "The farmer bought a cow."),
    ("The train came late, so Noah waited at the station.", "Noah was at the station.", "The train was early."),
    ("Maria painted the wall white.", "The wall was painted.", "The wall is black now."),
    ("The cow and her calf are in the field.", "The calf is in the field.", "The field is empty."),
    ("The king is older than the queen.", "The queen is younger than the king.", "The queen is older than the king."),
    ("Adam put the letter into the box and closed it.", "The letter is in the box.", "The box is empty."),
    ("Omar is asleep in his bed.", "Omar is not awake.", "Omar is in the park."),
    ("Lena saw a swan on the lake.", "Lena saw a bird.", "The swan was in a cage."),
)  # fmt: skip

# A premise, "cause" or "effect", the likely one and an unlikely one.
CAUSES = (
    ("The girl was hungry.", "effect", "She ate an apple.", "She washed her hands."),
    ("The boy put on his coat.", "cause", "It was cold outside.", "The soup was hot."),
    ("The man opened his umbrella.", "cause", "It began to rain.", "He lost his hat."),
    ("The dog saw a cat.", "effect", "It began to bark.", "It fell asleep."),
    ("The cup fell on the floor.", "effect", "It broke.", "It was full of milk again."),
    ("The child cried.", "cause", "He lost his ball.", "He got a new kite."),
    ("The woman lit a candle.", "cause", "The room was dark.", "The room was clean."),
    ("The farmer forgot to close the gate.", "effect", "The sheep ran away.", "The sheep slept in the barn."),
    ("The girl laughed.", "cause", "The clown fell into the water.", "The shop was closed."),
    ("The man missed the bus.", "effect", "He came late.", "He came early."),
    ("The bread was old and hard.", "effect", "Nobody wanted to eat it.", "Everybody asked for more."),
    ("The girl got a kite for her birthday.", "effect", "She was happy.", "She was sad."),
    ("The plant was dry.", "effect", "The gardener gave it water.", "The gardener sold his boat."),
    ("The boy took off his shoes.", "cause", "They were wet.", "They were new and dry."),
)

# A word, two sentences in which it means the same, and one in which it means something else.
SENSES = (
    ("letter", "Ann wrote a letter to her aunt.", "The postman brought a letter.", "A is the first letter."),
    ("key", "Tom lost the key of the door.", "You need a key to open the lock.", "She hit a key of the piano."),
    ("trunk", "The elephant lifted its trunk.", "The elephant drank with its trunk.", "The tree has a thick trunk."),
    ("orange", "Kate ate an orange.", "He bought an orange at the market.", "The wall is orange."),
    ("light", "The bag is light, so I can carry it.", "A box with nothing in it is light.", "The lamp gives light."),
    ("kid", "The goat has a kid.", "The kid ran to its mother, the goat.", "The kid went to school."),
    ("spring", "The flowers come in spring.", "After winter comes spring.", "They drank from a spring in the forest."),
    ("ring", "She has a gold ring on her finger.", "The jeweller made a ring.", "I heard the bell ring."),
    ("watch", "He wears a watch on his arm.", "My watch is slow.", "They watch the birds."),
    ("park", "The children play in the park.", "There is a lake in the park.", "You can park the car here."),
    ("fly", "There is a fly in the soup.", "The spider caught a fly.", "The birds fly to the south."),
    ("nail", "He hit the nail with a hammer.", "The picture hangs on a nail.", "She cut the nail of her thumb."),
    ("match", "She lit the candle with a match.", "He used a match to light the fire.", "They won the football match."),
    ("left", "Lift your left hand.", "She hurt her left foot.", "He left the house at noon."),
)

# A sentence, its pronoun, whom or what it means and does not mean, and what is said of that.
PRONOUNS = (
    ("The drum is not in the bag because it is too big.", "it", "the drum", "the bag", "{} is too big."),
    ("The drum is not in the bag because it is too small.", "it", "the bag", "the drum", "{} is too small."),
    ("Ann thanked Kate because she had helped her.", "she", "Kate", "Ann", "{} had helped her."),
    ("Ann could lift Kate because she was strong.", "she", "Ann", "Kate", "{} was strong."),
    ("The cat ran from the dog because it was angry.", "it", "the dog", "the cat", "{} was angry."),
    ("The cat ran from the dog because it was afraid.", "it", "the cat", "the dog", "{} was afraid."),
    ("Tom gave Paul the cake because he was hungry.", "he", "Paul", "Tom", "{} was hungry."),
    ("The hen sat on the egg until it was hungry.", "it", "the hen", "the egg", "{} was hungry."),
    ("Tom gave Paul the cake because he was not hungry.", "he", "Tom", "Paul", "{} was not hungry."),
    ("The stone fell on the cup, and it broke at once.", "it", "the cup", "the stone", "{} broke at once."),
    ("The girl carried the baby because he could not walk.", "he", "the baby", "the girl", "{} could not walk."),
    ("The boy asked the teacher, but she did not know.", "she", "the teacher", "the boy", "{} did not know."),
    ("Eric lifted the lamb because it was tired.", "it", "the lamb", "Eric", "{} was tired."),
    ("The bird flew out of the cage because it was open.", "it", "the cage", "the bird", "{} was open."),
    ("Mary lost the ring when she ran home.", "she", "Mary", "the ring", "{} ran home."),
    ("Nora called Vera, and she answered at once.", "she", "Vera", "Nora", "{} answered at once."),
)  # fmt: skip

# What somebody is about, how it begins, how the next sentence begins, how that goes on, and how it does not.
ENDINGS = (
    ("Making tea", "Ann fills the kettle with water.", "she", "boils the water and makes the tea.",
     ("puts the kettle on her head.", "plants the kettle in the garden.", "sails to the island in the kettle.")),
    ("Cutting bread", "Tom has a loaf on the table and a knife in his hand.", "he", "cuts the bread.",
     ("sweeps the floor with the bread.", "sews the bread to his coat.", "reads the bread to the children.")),
    ("Washing hands", "The girl comes in from the garden, and her hands are dirty.", "she",
     "washes them with soap and water.",
     ("dries them before they are wet.", "puts them into the oven.", "rubs mud on them until they are clean.")),
    ("Posting a letter", "Henry has written a letter and put a stamp on it.", "he", "goes out and posts it.",
     ("eats it with a spoon.", "milks it in the barn.", "teaches it to swim.")),
    ("Fishing", "The fisherman sits at the lake with a net.", "he", "catches a fish.",
     ("catches the moon.", "bakes the lake.", "paints the net on the fish and flies away.")),
    ("Going to bed", "It is late, and the boy is tired.", "he", "goes to bed and sleeps.",
     ("gets up and goes to school.", "eats his bed for lunch.", "wakes everybody up for breakfast.")),
    ("Opening a door", "The door is locked, but Clara has the key.", "she", "opens the door with the key.",
     ("opens the key with the door.", "drinks the key.", "grows another door from the key.")),
    ("Drawing", "Luke has a pencil and some paper.", "he", "draws a picture of his house.",
     ("draws water from the paper.", "cuts wood with the paper.", "cooks the pencil and eats the paper.")),
    ("Digging", "The gardener takes a spade and goes into the garden.", "she", "digs a hole for a tree.",
     ("digs a hole in the sky.", "writes a letter with the spade.", "combs her hair with a tree.")),
    ("Rain", "It begins to rain, and Mei has an umbrella.", "she", "opens it and stays dry.",
     ("closes it and stays dry in the rain.", "opens it and is wet from the sun.", "drinks it and goes on.")),
    ("Feeding animals", "The farmer goes to the stable, and the horse is hungry.", "he", "gives it some hay.",
     ("gives it a hammer to eat.", "asks it to pay for the stable.", "reads it the news until it is full.")),
    ("Going by bus", "The man waits for the bus, and now it comes.", "he", "gets on and rides to the town.",
     ("puts it into his pocket.", "reads it a story.", "eats it with some cheese.")),
    ("Lighting a room", "It is dark in the room, and Alice finds a candle.", "she", "lights it and can see.",
     ("drinks it and can see.", "closes her eyes and can see.", "puts it into the soup and can see.")),
    ("Telling the time", "Nora wants to know how late it is.", "she", "looks at the clock.",
     ("looks into the soup.", "asks the spoon.", "counts her shoes.")),
)  # fmt: skip

# The name of a function, its arguments, what it does with an example, its body, and what must hold of it.
FUNCTIONS = (
    ("add_one", "number: int", "int", "Give the number after this one.", "add_one(3)", "4",
     "    return number + 1\n", ("candidate(0) == 1", "candidate(41) == 42", "candidate(-1) == 0")),
    ("first_word", "sentence: str", "str", "Give the first word of a sentence.", "first_word('Tom is here')", "'Tom'",
     "    return sentence.split()[0]\n",
     ("candidate('The dog barks') == 'The'", "candidate('Stop') == 'Stop'", "candidate('Ann can swim') == 'Ann'")),
    ("count_things", "things: list", "int", "Count the things in a list.", "count_things(['cup', 'hat'])", "2",
     "    return len(things)\n",
     ("candidate([]) == 0", "candidate(['cow']) == 1", "candidate(['pen', 'shoe', 'bee']) == 3")),
    ("sort_numbers", "numbers: list", "list", "Sort the numbers from small to big.", "sort_numbers([4, 8, 3])",
     "[3, 4, 8]", "    return sorted(numbers)\n",
     ("candidate([1, 6, 3]) == [1, 3, 6]", "candidate([]) == []", "candidate([5, 5, 2]) == [2, 5, 5]")),
)  # fmt: skip
