"""The kinds of word problem that only the held-out part has: improvement on them is transfer."""

from fractions import Fraction

from cgd_ray.data.demo.words import NAMES, Draw, Worked, amount, money

_COLORED = ("beads", "buttons", "balloons", "marbles", "tiles", "tulips", "caps", "crayons")
_COLORS = ("red", "blue", "green", "white", "yellow", "black")


def averages(draw: Draw, steps: int) -> Worked:
    """The mean of some numbers, or the missing number that gives a mean."""
    name = draw.pick(NAMES)
    what = draw.pick(("points in a quiz", "kilometers on a run", "emails a day", "goals in a season"))
    count, mean = draw.number(3, 5), draw.number(8, 40)
    total = count * mean
    if steps == 1:
        question = f"In {count} weeks {name} counts {total} {what} in all. What is the average per week?"
        return Worked(question, [f"The average is {total} / {count} = {mean}."], str(mean))
    parts = [mean + draw.number(-6, 6) for _ in range(count - 1)]
    if sum(parts) >= total:  # no count is negative: mirrored numbers leave more than the mean
        parts = [2 * mean - part for part in parts]
    last = total - sum(parts)
    if steps == 2:
        numbers = [*parts, last]
        question = f"{name} counts these {what}, week by week: {_listed(numbers)}. What is the average per week?"
        sums = " + ".join(map(str, numbers))
        work = [f"The sum is {sums} = {total}.", f"The average is {total} / {count} = {mean}."]
        return Worked(question, work, str(mean))
    work = [
        f"For an average of {mean} the sum must be {count} * {mean} = {total}.",
        f"So far the sum is {' + '.join(map(str, parts))} = {sum(parts)}.",
        f"The next number must be {total} - {sum(parts)} = {last}.",
    ]
    question = (
        f"{name} counts these {what}, week by week: {_listed(parts)}. "
        f"How many must it be in the next week for an average of {mean} over all {count} weeks?"
    )
    return Worked(question, work, str(last))


def fractions(draw: Draw, steps: int) -> Worked:
    """Which fraction of a collection has a color."""
    name, things, (color, other) = draw.pick(NAMES), draw.pick(_COLORED), draw.several(_COLORS, 2)
    some, rest = draw.number(2, 20), draw.number(2, 20)
    end = f"What fraction of them is {color}? Give it in lowest terms."
    if steps == 1:
        total = some + rest
        story = f"{name} has {total} {things}, and {some} of them are {color}."
        return Worked(f"{story} {end}", [_part(some, total)], str(Fraction(some, total)))
    story = f"{name} has {some} {color} and {rest} {other} {things}."
    work, total = [], some + rest
    if steps >= 3:
        added = draw.number(2, 12)
        story += f" A friend adds {added} {color} ones."
        work.append(f"There are {some} + {added} = {some + added} {color} {things}.")
        some += added
        total += added
    work.append(f"In all there are {some} + {rest} = {total} {things}.")
    work.append(_part(some, total))
    return Worked(f"{story} {end}", work, str(Fraction(some, total)))


def fuel(draw: Draw, steps: int) -> Worked:
    """Fuel by the hundred kilometers: liters, what is left, what it costs."""
    name, vehicle = draw.pick(NAMES), draw.pick(("car", "van", "taxi", "minibus", "truck"))
    rate, hundreds = draw.number(4, 20), draw.number(2, 9)
    used = rate * hundreds
    story = (
        f"{name} drives {hundreds * 100} kilometers in a {vehicle} that uses {rate} liters of fuel "
        "for every 100 kilometers."
    )
    if steps == 1:
        work = [f"The {vehicle} uses {rate} * {hundreds * 100} / 100 = {used} liters."]
        return Worked(f"{story} How many liters does it use?", work, str(used))
    work = [
        f"The trip has {hundreds * 100} / 100 = {hundreds} times 100 kilometers.",
        f"It takes {hundreds} * {rate} = {used} liters.",
    ]
    if steps == 2:
        return Worked(f"{story} How many liters does it use?", work, str(used))
    if draw.pick((True, False)):
        price = draw.number(120, 220, 5)
        work.append(f"The fuel costs {used} * {money(price)} = {money(used * price)}.")
        question = f"{story} A liter costs {money(price)}. How many dollars does the fuel cost?"
        return Worked(question, work, amount(used * price))
    tank = used + draw.number(3, 40)
    work.append(f"What is left is {tank} - {used} = {tank - used} liters.")
    question = f"{story} It started with {tank} liters. How many liters are left?"
    return Worked(question, work, str(tank - used))


def seating(draw: Draw, steps: int) -> Worked:
    """Seats in rows, taken and free."""
    name, hall = draw.pick(NAMES), draw.pick(("theater", "lecture hall", "cinema", "church", "concert hall"))
    rows, seats = draw.number(6, 25), draw.number(8, 30)
    total = rows * seats
    story = f"{name} sits in a {hall} that has {rows} rows of {seats} seats"
    work = [f"The rows have {rows} * {seats} = {total} seats."]
    if steps >= 3:
        extra_rows, extra_seats = draw.number(2, 6), draw.number(4, 12)
        extra = extra_rows * extra_seats
        story += f" and a balcony with {extra_rows} rows of {extra_seats} seats"
        work.append(f"The balcony has {extra_rows} * {extra_seats} = {extra} seats.")
        work.append(f"In all there are {total} + {extra} = {total + extra} seats.")
        total += extra
    if steps in (1, 3):
        return Worked(f"{story}. How many seats are there?", work, str(total))
    taken = draw.number(10, total - 5)
    work.append(f"There are {total} - {taken} = {total - taken} free seats.")
    return Worked(f"{story}. If {taken} seats are taken, how many are free?", work, str(total - taken))


def growing(draw: Draw, steps: int) -> Worked:
    """Steady growth, and two plants compared."""
    plant, other = draw.several(("sunflower", "bean", "bamboo", "tomato plant", "hop vine", "rose bush"), 2)
    name, rate, weeks = draw.pick(NAMES), draw.number(2, 18), draw.number(3, 15)
    grown = rate * weeks
    work = [f"In {weeks} weeks it grows {weeks} * {rate} = {grown} centimeters."]
    if steps == 1:
        story = f"{name} has a {plant} that grows {rate} centimeters a week."
        question = f"{story} How many centimeters does it grow in {weeks} weeks?"
        return Worked(question, work, str(grown))
    start = draw.number(5, 60)
    height = start + grown
    story = f"{name} plants a {plant}. It is {start} centimeters tall and grows {rate} centimeters a week."
    work.append(f"Then it is {start} + {grown} = {height} centimeters tall.")
    if steps == 2:
        return Worked(f"{story} How many centimeters tall is it after {weeks} weeks?", work, str(height))
    small = draw.number(5, height - 1)
    work.append(f"The difference is {height} - {small} = {height - small} centimeters.")
    question = (
        f"{story} After {weeks} weeks, a {other} beside it is {small} centimeters tall. "
        f"How many centimeters taller is the {plant} then?"
    )
    return Worked(question, work, str(height - small))


def phone_plan(draw: Draw, steps: int) -> Worked:
    """A monthly fee and a price per minute."""
    name, minutes, price, fee = (
        draw.pick(NAMES),
        draw.number(20, 150, 5),
        draw.pick((5, 8, 10, 12, 20)),
        draw.cents(4, 15),
    )
    talk = minutes * price
    work = [f"The calls cost {minutes} * {money(price)} = {money(talk)}."]
    if steps == 1:
        story = f"A phone call costs {money(price)} a minute. {name} talks for {minutes} minutes."
        question = f"{story} How many dollars is that?"
        return Worked(question, work, amount(talk))
    month = talk + fee
    story = f"{name} pays {money(fee)} a month for a phone and {money(price)} for each minute of calls."
    work.append(f"With the fee that is {money(talk)} + {money(fee)} = {money(month)}.")
    if steps == 2:
        return Worked(f"{story} How many dollars is a month with {minutes} minutes?", work, amount(month))
    months = draw.number(2, 6)
    work.append(f"For {months} months that is {months} * {money(month)} = {money(months * month)}.")
    question = f"{story} Every month has {minutes} minutes of calls. How many dollars do {months} months cost?"
    return Worked(question, work, amount(months * month))


def machines(draw: Draw, steps: int) -> Worked:
    """Output of machines in a period."""
    things = draw.pick(("bolts", "caps", "labels", "spoons", "tiles", "bottles"))
    name, rate, minutes = draw.pick(NAMES), draw.number(4, 40), draw.number(5, 55)
    if steps == 1:
        story = f"{name} has a machine that makes {rate} {things} a minute."
        question = f"{story} How many does it make in {minutes} minutes?"
        return Worked(question, [f"It makes {minutes} * {rate} = {minutes * rate} {things}."], str(minutes * rate))
    hours = draw.number(2, 9)
    made = hours * 60 * rate
    story = f"The machine of {name} makes {rate} {things} a minute and runs for {hours} hours."
    work = [
        f"The machine runs for {hours} * 60 = {hours * 60} minutes.",
        f"It makes {hours * 60} * {rate} = {made} {things}.",
    ]
    if steps == 2:
        return Worked(f"{story} How many {things} does it make?", work, str(made))
    broken = draw.number(5, 90)
    work.append(f"Without the broken ones there are {made} - {broken} = {made - broken} {things}.")
    question = f"{story} Of these, {broken} {things} are broken. How many good ones are there?"
    return Worked(question, work, str(made - broken))


def _part(some: int, total: int) -> str:
    share = Fraction(some, total)
    return f"The fraction is {some} / {total} = {share}."


def _listed(numbers: list[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
