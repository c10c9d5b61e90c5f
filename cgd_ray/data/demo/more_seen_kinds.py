"""More kinds of word problem that are trained on."""

from cgd_ray.data.demo.words import NAMES, TREATS, Draw, Worked, amount, money

_UNITS = (
    ("hours", "minutes", 60, ("A film lasts", "A trip takes", "A meeting lasts")),
    ("meters", "centimeters", 100, ("A rope is", "A ribbon is", "A board measures")),
    ("kilograms", "grams", 1000, ("A parcel weighs", "A sack of rice weighs", "A melon weighs")),
    ("liters", "milliliters", 1000, ("A jug holds", "A tank holds", "A bucket contains")),
)


def saving(draw: Draw, steps: int) -> Worked:
    """Saving by the week towards a goal."""
    name, goal = draw.pick(NAMES), draw.pick(("a camera", "a skateboard", "a phone", "a tent", "a violin"))
    weekly, weeks = draw.number(4, 25), draw.number(3, 12)
    have = weekly * weeks
    story = f"{name} saves ${weekly} every week for {weeks} weeks."
    work = [f"In {weeks} weeks that is {weeks} * ${weekly} = ${have}."]
    if steps >= 2:
        start = draw.number(10, 80)
        story = f"{name} starts with ${start}. {story}"
        work.append(f"With the start it is ${start} + ${have} = ${have + start}.")
        have += start
    if steps >= 4:
        spent = draw.number(5, 20)
        story += f" Then {name} spends ${spent} on a present."
        work.append(f"After the present there is ${have} - ${spent} = ${have - spent}.")
        have -= spent
    if steps < 3:
        return Worked(f"{story} How many dollars does {name} have then?", work, str(have))
    price = have + draw.number(5, 120)
    work.append(f"What is missing is ${price} - ${have} = ${price - have}.")
    question = f"{story} {name} wants {goal} for ${price}. How many dollars are still missing?"
    return Worked(question, work, str(price - have))


def cooking(draw: Draw, steps: int) -> Worked:
    """A recipe scaled to more people."""
    name, food = draw.pick(NAMES), draw.pick(("rice", "flour", "pasta", "lentils", "potatoes", "oats"))
    each, served, factor = draw.number(50, 150, 5), draw.pick((2, 4, 5)), draw.number(2, 5)
    people = served * factor
    if steps == 1:
        needed = each * people
        question = f"{name} cooks {each} grams of {food} per person. How many grams are needed for {people} people?"
        return Worked(question, [f"The recipe needs {people} * {each} = {needed} grams."], str(needed))
    base = each * served
    needed = base * factor
    story = f"A recipe for {served} people takes {base} grams of {food}. {name} cooks it for {people} people"
    work = [
        f"The recipe is made {people} / {served} = {factor} times.",
        f"That takes {factor} * {base} = {needed} grams.",
    ]
    if steps == 2:
        return Worked(f"{story}. How many grams of {food} does {name} need?", work, str(needed))
    have = draw.number(50, needed - 50, 10)
    missing = needed - have
    story += f" and has {have} grams at home"
    work.append(f"What is missing is {needed} - {have} = {missing} grams.")
    return Worked(f"{story}. How many more grams of {food} does {name} need?", work, str(missing))


def tickets(draw: Draw, steps: int) -> Worked:
    """Revenue of tickets at one price or two, and what is left after the rent."""
    event = draw.pick(("concert", "school play", "museum", "circus", "film night", "chess final"))
    adults, price = draw.number(10, 60), draw.cents(4, 15)
    income = adults * price
    story = f"A {event} sells {adults} adult tickets at {money(price)} each"
    work = [f"The adult tickets bring {adults} * {money(price)} = {money(income)}."]
    if steps >= 3:
        children, reduced = draw.number(5, 40), draw.number(2, 3) * 100
        extra = children * reduced
        story += f" and {children} child tickets at {money(reduced)} each"
        work.append(f"The child tickets bring {children} * {money(reduced)} = {money(extra)}.")
        work.append(f"Together they bring {money(income)} + {money(extra)} = {money(income + extra)}.")
        income += extra
    if steps in (1, 3):
        return Worked(f"{story}. How many dollars do the tickets bring?", work, amount(income))
    rent = draw.number(10, min(150, income // 100 - 5)) * 100
    work.append(f"After the costs there is {money(income)} - {money(rent)} = {money(income - rent)}.")
    question = f"{story}. The evening costs {money(rent)}. How many dollars are left after the costs?"
    return Worked(question, work, amount(income - rent))


def fencing(draw: Draw, steps: int) -> Worked:
    """Area and perimeter of a rectangle, and the price of a fence around it."""
    place = draw.pick(("garden", "field", "playground", "yard", "vegetable bed", "meadow"))
    length, width = draw.number(6, 40), draw.number(3, 25)
    story = draw.pick(
        (
            f"A rectangular {place} is {length} meters long and {width} meters wide.",
            f"The sides of a rectangular {place} are {length} meters and {width} meters.",
        )
    )
    if steps == 1:
        area = length * width
        return Worked(
            f"{story} What is its area in square meters?",
            [f"The area is {length} * {width} = {area}."],
            str(area),
        )
    half = length + width
    work = [
        f"Two neighboring sides are {length} + {width} = {half} meters.",
        f"The perimeter is 2 * {half} = {2 * half} meters.",
    ]
    if steps == 2:
        return Worked(f"{story} What is its perimeter in meters?", work, str(2 * half))
    price = draw.number(3, 15)
    cost = 2 * half * price
    story += f" A fence costs ${price} per meter."
    work.append(f"The fence costs {2 * half} * ${price} = ${cost}.")
    if steps == 3:
        return Worked(f"{story} How many dollars does a fence all around it cost?", work, str(cost))
    gate = draw.number(20, 90, 5)
    work.append(f"With the gate that is ${cost} + ${gate} = ${cost + gate}.")
    question = f"{story} A gate costs ${gate} more. How many dollars do fence and gate cost together?"
    return Worked(question, work, str(cost + gate))


def comparing(draw: Draw, steps: int) -> Worked:
    """How many more, how many together."""
    (first, second, third), things = draw.several(NAMES, 3), draw.pick(TREATS)
    few, factor = draw.number(6, 30), draw.number(2, 5)
    many = factor * few
    story = f"{first} has {few} {things}. {second} has {factor} times as many."
    work = [f"{second} has {factor} * {few} = {many} {things}."]
    if steps == 1:
        return Worked(f"{story} How many {things} does {second} have?", work, str(many))
    if steps == 2:
        if draw.pick((True, False)):
            work.append(f"The difference is {many} - {few} = {many - few} {things}.")
            return Worked(f"{story} How many more does {second} have than {first}?", work, str(many - few))
        work.append(f"Together they have {few} + {many} = {few + many} {things}.")
        return Worked(f"{story} How many do they have together?", work, str(few + many))
    fewer = draw.number(2, many - 1)
    rest = many - fewer
    total = few + many + rest
    story += f" {third} has {fewer} fewer than {second}."
    work.append(f"{third} has {many} - {fewer} = {rest} {things}.")
    work.append(f"Together they have {few} + {many} + {rest} = {total} {things}.")
    if steps == 3:
        return Worked(f"{story} How many {things} do the three have together?", work, str(total))
    lost = draw.number(2, few)
    work.append(f"After the loss they have {total} - {lost} = {total - lost} {things}.")
    question = f"{story} Then {first} loses {lost} {things}. How many do the three have together now?"
    return Worked(question, work, str(total - lost))


def converting(draw: Draw, steps: int) -> Worked:
    """A measure in its smaller unit, with something added or taken."""
    large, small, factor, openings = draw.pick(_UNITS)
    count = draw.number(2, 12)
    amount_small = count * factor
    opening = draw.pick(openings)
    if steps == 1:
        work = [f"In {small} that is {count} * {factor} = {amount_small}."]
        return Worked(f"{opening} {count} {large}. How many {small} is that?", work, str(amount_small))
    extra = draw.number(5, factor - 5, 5)
    whole = amount_small + extra
    story = f"{opening} {count} {large} and {extra} {small}."
    work = [
        f"The {large} are {count} * {factor} = {amount_small} {small}.",
        f"In all that is {amount_small} + {extra} = {whole} {small}.",
    ]
    if steps == 2:
        return Worked(f"{story} How many {small} is that?", work, str(whole))
    gone = draw.number(10, whole - 10, 5)
    work.append(f"What is left is {whole} - {gone} = {whole - gone} {small}.")
    question = f"{story} After {gone} {small} of it are gone, how many {small} are left?"
    return Worked(question, work, str(whole - gone))


def reading(draw: Draw, steps: int) -> Worked:
    """Pages read, pages left, days to the end of the book."""
    name, thing = (
        draw.pick(NAMES),
        draw.pick(("novel", "textbook", "biography", "book of stories", "travel guide")),
    )
    daily, days, later, rest_days = (
        draw.number(8, 30),
        draw.number(3, 9),
        draw.number(6, 25),
        draw.number(2, 9),
    )
    read = daily * days
    story = f"{name} reads {daily} pages of a {thing} every day for {days} days."
    work = [f"In {days} days {name} reads {days} * {daily} = {read} pages."]
    if steps == 1:
        return Worked(f"{story} How many pages is that?", work, str(read))
    left = later * rest_days
    pages = read + left
    story = f"A {thing} has {pages} pages. {name} reads {daily} of them every day for {days} days."
    work.append(f"There are {pages} - {read} = {left} pages left.")
    if steps == 2:
        return Worked(f"{story} How many pages are left?", work, str(left))
    work.append(f"The rest takes {left} / {later} = {rest_days} days.")
    question = f"{story} After that {name} reads {later} pages a day. How many more days does the rest take?"
    return Worked(question, work, str(rest_days))
