"""What the built-in chat prompts are about, and how they ask: lists that are combined at random."""

from __future__ import annotations


def _items(text: str) -> tuple[str, ...]:
    return tuple(" ".join(text.split()).split("; "))


TOPICS = _items(
    """
    bread baking; the water cycle; bicycle maintenance; honey bees; the Roman aqueducts; tea;
    coffee roasting; home insulation; volcanoes; tide pools; chess openings; personal budgeting;
    learning the piano; public libraries; wind turbines; solar panels; vaccines; the immune
    system; sleep habits; marathon training; yoga; houseplants; composting; vegetable gardens;
    apple orchards; cheese making; fermentation; knitting; pottery; watercolour painting; street
    photography; film editing; jazz; classical guitar; opera; folk tales; detective novels; haiku;
    science fiction; board games; card games; football; basketball; swimming; rock climbing;
    mountain hiking; camping; sailing; fishing; bird watching; dogs; cats; horses; elephants;
    whales; octopuses; dinosaurs; fossils; earthquakes; hurricanes; lightning; rainbows; glaciers;
    deserts; rainforests; coral reefs; rivers; lakes; islands; caves; the moon; Mars; Jupiter;
    comets; black holes; galaxies; telescopes; microscopes; DNA; photosynthesis; evolution; the
    human heart; the brain; vitamins; nutrition; vegetarian cooking; pasta; soup; curry; sushi;
    tacos; pancakes; chocolate; ice cream; olive oil; spices; salt; sugar; rice; maize; potatoes;
    tomatoes; grapes; wine; beer; drinking water; rivers in cities; railways; trams; electric
    cars; bridges; tunnels; skyscrapers; castles; lighthouses; museums; markets; harbours;
    airports; hot air balloons; airplanes; submarines; satellites; robots; the internet; search
    engines; email; passwords; encryption; databases; spreadsheets; text editors; operating
    systems; video games; smartphones; batteries; magnets; lasers; radio; television; newspapers;
    printing; paper; ink; maps; compasses; clocks; calendars; coins; banks; taxes; insurance;
    pensions; small businesses; job interviews; remote work; meetings; time management; public
    speaking; negotiation; teamwork; friendship; parenting; school lunches; homework;
    kindergarten; universities; scholarships; learning languages; Spanish; Japanese; Latin;
    grammar; spelling; dictionaries; probability; geometry; algebra; statistics; prime numbers;
    fractions; logic puzzles; riddles; magic tricks; theatre; dance; weddings; birthdays;
    holidays; gifts; gratitude; meditation; stress; exercise; first aid; dentists; glasses;
    hearing; allergies; recycling; plastic waste; air pollution; climate change; forests; soil;
    farming; fisheries; democracy; elections; courts; constitutions; human rights; the Silk Road;
    ancient Egypt; ancient Greece; the Vikings; the Renaissance; the Industrial Revolution; the
    printing press; the telephone; the steam engine; world heritage sites; Paris; Tokyo; Nairobi;
    New York; Istanbul; Rio de Janeiro; the Alps; the Pacific Ocean; rush hour; neighbourhoods;
    moving house; furniture; carpentry; painting walls; plumbing
    """
)
ROLES = _items(
    """
    teacher; gardener; chef; nurse; engineer; historian; journalist; travel guide; detective;
    poet; software developer; economist; librarian; ship captain; veterinarian; architect; coach;
    astronaut; farmer; stand-up comedian
    """
)
NAMES = _items(
    """
    Maria; Tom; Aisha; Ben; Chen; Sofia; Omar; Lena; Raj; Julia; Peter; Nadia; Sam; Olga; Kofi;
    Emma
    """
)
STYLES = _items(
    """
    formal; friendly; humorous; simple; persuasive; poetic; neutral; enthusiastic; concise;
    dramatic
    """
)
LANGUAGES = ("German", "French", "Spanish", "Italian", "Portuguese")

CHAT = (
    "What is {topic}?",
    "Explain {topic} to a ten-year-old.",
    "Explain the most important facts about {topic} in a few sentences.",
    "Give me {n} tips about {topic}.",
    "What are the advantages and disadvantages of {topic}?",
    "Compare {topic} and {other}. Which similarities and differences are there?",
    "Who first became known for {topic}, and when?",
    "When did people begin to care about {topic}?",
    "Where does {topic} play the largest role today?",
    "Why is {topic} important?",
    "How does {topic} affect daily life?",
    "What is the history of {topic}?",
    "Write a short story about {topic}.",
    "Write a {style} blog post about {topic}.",
    "Write a poem about {topic} in {n} lines.",
    "Write a {style} email to a colleague about {topic}.",
    "Write a letter to the editor about {topic}.",
    "Write a product description for a book about {topic}.",
    "Write a dialogue between {name} and {friend} about {topic}.",
    "Write a {style} speech of two paragraphs about {topic}.",
    "Write an outline for an essay on {topic}: an introduction, {n} sections and a conclusion.",
    "Draft an announcement for an event about {topic}. Keep it {style}.",
    "Pretend to be a {role}. What would you say about {topic}?",
    "You are a {role} and are asked about {topic} by a curious child. Answer in a {style} tone.",
    "Imagine you are a {role} who loves {topic}. Describe your day.",
    "Answer as a {role}: how should a beginner start with {topic}?",
    "Describe {topic} without using technical words.",
    "List {n} questions that one could ask about {topic}, and answer the first one.",
    "List {n} common mistakes in {topic} and how to avoid them.",
    "Suggest {n} titles for an article about {topic}.",
    "Plan a weekend around {topic}.",
    "Create a quiz with {n} questions about {topic}, with the answers.",
    "Name {n} well-known examples that have to do with {topic}.",
    "What would happen if there were no {topic}?",
    "Is it true that {topic} is harder to understand than {other}? Give reasons.",
    "Someone claims that {topic} is a waste of time. Argue against it.",
    "Give a step-by-step introduction to {topic}.",
    "What do I need to know about {topic} before I talk to a {role}?",
    "Rewrite this sentence in a {style} style: {name} told {friend} all about {topic}.",
    "Correct the grammar: {name} have always like {topic} but he never find time for them.",
    "Extract all names and topics from this text as a list: {name} and {friend} met on Monday. "
    "They talked about {topic}, and later {name} also mentioned {other}.",
    "Classify each of these as nature, culture or technology: {topic}, {other}. Explain briefly.",
    "Turn these notes into a paragraph: {topic}; {other}; {name} agrees; {friend} does not.",
    "Return a JSON object with the keys title, summary and tags for an article about {topic}.",
    "Make a table in Markdown that compares {topic} with {other} in {n} rows.",
    "Which science studies {topic}, and what are its main ideas?",
    "What is the difference between a hobby and a job when it comes to {topic}?",
    "How can a school teach {topic} in a good way?",
    "Summarize what is known about {topic} in exactly {n} sentences.",
    "Translate to {language}: I would like to learn more about {topic}.",
    "Translate the following sentence into {language}: {name} has been thinking about {topic} "
    "since last year.",
)
MATHS = (
    "{name} has {a} apples and buys {b} more. {friend} takes {c} of them. How many are left?",
    "A ticket for a show about {topic} costs ${a}. {name} buys {c} tickets and pays with ${big}. "
    "How much change does {name} get?",
    "{name} reads {b} pages a day. How many pages does {name} read in {c} weeks?",
    "A train travels {big} miles in {c} hours. What is its average speed? Show your steps.",
    "{name} is {c} years older than {friend}. Together they are {a} years old. How old is each?",
    "A shop sells {a} cups a day at ${c} each. How much does it earn in {b} days?",
    "Solve for x: {c}x + {a} = {big}. Explain each step.",
    "What is {a} percent of {big}?",
    "The average of {a}, {b} and a third number is {c}. What is the third number?",
    "{name} shares {big} stickers among {c} children. How many does each child get, and how many "
    "remain?",
    "A rectangle is {a} cm long and {b} cm wide. What are its area and its perimeter?",
    "If {name} walks faster than {friend}, and {friend} walks faster than {third}, who is slowest?",
)
CODE = (
    "Write a Python function that {task}.",
    'Write a Python function `{function}` with the docstring "{sentence}"',
    "Implement `{function}` in Python. {sentence} Add a short example.",
    "Explain what this Python function is for and how one would test it: `{function}{arguments}`, "
    '"{sentence}"',
    "Write {n} unit tests for a Python function `{function}{arguments}`. {sentence}",
)
TASKS = _items(
    """
    reverses the words of a sentence; counts the vowels in a string; returns the n-th Fibonacci
    number; checks whether a number is prime; merges two sorted lists; removes duplicates from a
    list but keeps the order; flattens a nested list; computes the factorial of n; finds the
    longest word in a text; counts how often each word occurs; checks whether two words are
    anagrams; converts Celsius to Fahrenheit; sorts a list of dictionaries by a key; sums the
    digits of an integer; finds the second largest element; rotates a list by k places; validates
    a date in the form YYYY-MM-DD; parses a CSV line; computes the greatest common divisor;
    returns all permutations of a list; transposes a matrix; multiplies two matrices; checks
    balanced brackets; finds all substrings of a string; computes a moving average; groups items
    by their first letter; converts a Roman numeral to an integer; encodes a string by run
    lengths; performs a binary search; implements bubble sort; implements a stack with push and
    pop; reads a file and counts its lines; removes punctuation; finds the intersection of two
    lists; generates a random password; checks whether a year is a leap year; computes the
    distance between two points; draws a triangle of asterisks; returns the even numbers of a
    list; capitalizes each word
    """
)
PASSAGE = (
    "Summarize: {passage}",
    "Summarize the following text in {n} sentences: {passage}",
    "Explain this paragraph in simple words: {passage}",
    "What is the main point of this text? {passage}",
    "Rewrite this paragraph in a {style} tone: {passage}",
    "Answer the question from the text. Text: {passage} Question: What does the text say about "
    '"{word}"?',
    'Here is some context:\n{passage}\n\nUsing it, explain the word "{word}".',
    "Find {n} key points in this text and list them: {passage}",
    "Write a title and {n} keywords for this text: {passage}",
)
GERMAN = (
    ("Der Lehrer", "Die Nachbarin", "Mein Bruder", "Das Kind", "Die Regierung", "Ein alter Freund"),
    ("hat gestern", "will morgen", "wird im Sommer", "konnte letzte Woche", "soll heute"),
    (
        "ein neues Buch",
        "die kleine Stadt",
        "das schwierige Problem",
        "einen langen Brief",
        "den Zug",
    ),
    ("gesehen", "besuchen", "verstehen", "schreiben", "finden", "verlassen"),
    (
        "weil es sehr wichtig ist",
        "obwohl niemand damit gerechnet hat",
        "bevor der Winter kommt",
        "damit alle zufrieden sind",
        "und danach nach Hause gehen",
    ),
)
"""Parts of German sentences to translate; not all fit together, as in real text."""
