"""The vocabulary of pictures: emojibase label -> the words people type for it, best name first.

Chosen by hand: single clear things, few look-alikes, no flags, no text, no skin tones.
"""

CONCEPTS: dict[str, tuple[str, ...]] = {
    label.strip(): tuple(word.strip() for word in words.split(","))
    for label, words in (
        line.split(":")
        for line in """
dog face: dog, puppy, doggy
cat face: cat, kitten, kitty
fox: fox
lion: lion
bear: bear, brown bear, grizzly
panda: panda, panda bear
pig face: pig, piglet
cow face: cow
horse: horse, pony
unicorn: unicorn
rabbit face: rabbit, bunny
mouse face: mouse
monkey face: monkey, chimp
frog: frog, toad
elephant: elephant
giraffe: giraffe
zebra: zebra
baby chick: chick
penguin: penguin
duck: duck
owl: owl
flamingo: flamingo
parrot: parrot
turtle: turtle, tortoise
snake: snake
dragon: dragon
T-Rex: dinosaur, tyrannosaurus
spouting whale: whale
dolphin: dolphin
tropical fish: fish, tropical fish
shark: shark
octopus: octopus
crab: crab
butterfly: butterfly
honeybee: bee, honeybee
lady beetle: ladybug, ladybird
spider: spider
red apple: apple
pear: pear
lemon: lemon
banana: banana, bananas
watermelon: watermelon
grapes: grapes, bunch of grapes
strawberry: strawberry
cherries: cherries, cherry
pineapple: pineapple
avocado: avocado
carrot: carrot
ear of corn: corn, maize
broccoli: broccoli
mushroom: mushroom, toadstool
croissant: croissant
cheese wedge: cheese
hamburger: hamburger, burger, cheeseburger
french fries: french fries, fries
pizza: pizza, slice of pizza
hot dog: hot dog
popcorn: popcorn
soft ice cream: ice cream, soft ice cream
doughnut: doughnut, donut
birthday cake: birthday cake, cake
cupcake: cupcake, muffin
hot beverage: coffee, cup of coffee, cup of tea
beer mug: beer, mug of beer
rose: rose
sunflower: sunflower
tulip: tulip
deciduous tree: tree
palm tree: palm tree, palm
cactus: cactus
sun: sun, sunshine
crescent moon: crescent moon, moon
star: star
cloud: cloud
rainbow: rainbow
fire: fire, flame
droplet: drop of water, water drop
high voltage: lightning, lightning bolt
snowflake: snowflake
snowman: snowman
globe showing Europe-Africa: planet earth, earth, globe
volcano: volcano
house: house, home
castle: castle
automobile: car, automobile
taxi: taxi, cab
bus: bus
fire engine: fire truck, fire engine
tractor: tractor
locomotive: train, locomotive, steam train
bicycle: bicycle, bike
airplane: airplane, plane
helicopter: helicopter
rocket: rocket, spaceship
flying saucer: flying saucer, ufo
sailboat: sailboat, sailing boat
anchor: anchor
red heart: heart
grinning face with big eyes: happy face, smiley
smiling face with sunglasses: face with sunglasses, cool face
smiling face with heart-eyes: face with heart eyes, face in love
loudly crying face: crying face, sad face
enraged face: angry face
skull: skull
ghost: ghost
alien: alien
robot: robot
jack-o-lantern: pumpkin, halloween pumpkin
Christmas tree: christmas tree
wrapped gift: gift, present, gift box
balloon: balloon
teddy bear: teddy bear
soccer ball: soccer ball, football
basketball: basketball
trophy: trophy, cup trophy
guitar: guitar
bell: bell
camera: camera
television: television, tv
laptop: laptop, computer
light bulb: light bulb, lamp
alarm clock: alarm clock, clock
key: key
books: books, stack of books
umbrella: umbrella
crown: crown
top hat: top hat, hat
t-shirt: shirt, t-shirt
running shoe: shoe, sneaker
gem stone: diamond, gem
bomb: bomb
""".strip().splitlines()
    )
}
