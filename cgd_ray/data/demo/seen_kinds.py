"""The kinds of word problem that are trained on, each a function of seeded draws and of the number of steps."""

from cgd_ray.data.demo.words import GOODS, NAMES, TREATS, Draw, Worked, amount, money

_BILLS = (1000, 2000, 5000, 10_000, 20_000, 50_000)


def shopping(draw: Draw, steps: int) -> Worked:
    """The total of one or two purchases, or the change from a bill."""
    name, (first, second) = draw.pick(NAMES), draw.several(GOODS, 2)
    count, price = draw.number(2, 9), draw.cents(1, 12)
    total = count * price
    purchase = f"{count} {first} at {money(price)} each"
    work = [f"The {first} cost {count} * {money(price)} = {money(total)}."]
    if steps >= 3:
        other, other_price = draw.number(2, 9), draw.cents(1, 9)
        purchase += f" and {other} {second} at {money(other_price)} each"
        cost = other * other_price
        work.append(f"The {second} cost {other} * {money(other_price)} = {money(cost)}.")
        work.append(f"Together that is {money(total)} + {money(cost)} = {money(total + cost)}.")
        total += cost
    story = draw.pick((f"{name} buys {purchase}.", f"At the market, {name} picks {purchase}."))
    if steps in (1, 3):
        return Worked(f"{story} How many dollars does {name} pay in total?", work, amount(total))
    bill = next(bill for bill in _BILLS if bill > total)
    change = bill - total
    work.append(f"The change is {money(bill)} - {money(total)} = {money(change)}.")
    question = f"{story} {name} pays with {money(bill)}. How many dollars of change does {name} get?"
    return Worked(question, work, amount(change))


def travel(draw: Draw, steps: int) -> Worked:
    """Distance from speed and time, in one leg or two, or what is left of the way."""
    name = draw.pick(NAMES)
    verb, low, high = draw.pick((("cycles", 10, 25), ("drives", 40, 100), ("walks", 3, 6), ("rides a scooter", 20, 40)))
    speed, hours = draw.number(low, high), draw.number(2, 7)
    way = speed * hours
    story = f"{name} {verb} for {hours} hours at {speed} kilometers per hour"
    work = [f"The distance is {hours} * {speed} = {way} kilometers."]
    if steps >= 3:
        other_speed, other_hours = draw.number(low, high), draw.number(2, 5)
        other = other_speed * other_hours
        story += f" and then for {other_hours} hours at {other_speed} kilometers per hour"
        work.append(f"The second distance is {other_hours} * {other_speed} = {other} kilometers.")
        work.append(f"Together that is {way} + {other} = {way + other} kilometers.")
        way += other
    if steps in (1, 3):
        end = draw.pick(("How many kilometers is that?", f"How many kilometers does {name} travel?"))
        return Worked(f"{story}. {end}", work, str(way))
    whole = way + draw.number(5, 90)
    work.append(f"What is left is {whole} - {way} = {whole - way} kilometers.")
    question = f"A route is {whole} kilometers long. {story}. How many kilometers of the route are left?"
    return Worked(question, work, str(whole - way))


def sharing(draw: Draw, steps: int) -> Worked:
    """Equal shares, after some were added or eaten."""
    name, things = draw.pick(NAMES), draw.pick(TREATS)
    friends, share = draw.number(3, 9), draw.number(3, 15)
    total = friends * share
    added = draw.number(2, total // 2) if steps >= 2 else 0
    gone = draw.number(2, 12) if steps >= 3 else 0
    start = total - added + gone
    story, work = f"{name} has {start} {things}", []
    if added:
        story += f" and gets {added} more"
        work.append(f"With the new ones there are {start} + {added} = {start + added} {things}.")
    if gone:
        story += f", but loses {gone} of them"
        work.append(f"After the loss there are {start + added} - {gone} = {total} {things}.")
    work.append(f"Each friend gets {total} / {friends} = {share} {things}.")
    end = draw.pick(
        (
            f"{name} shares all of them equally among {friends} friends. How many does each friend get?",
            f"Then {friends} friends divide them equally. How many {things} does each friend receive?",
        )
    )
    return Worked(f"{story}. {end}", work, str(share))


def discount(draw: Draw, steps: int) -> Worked:
    """A percentage off, the reduced price, and what several cost."""
    name, thing = (
        draw.pick(NAMES),
        draw.pick(("coat", "bicycle", "printer", "tent", "guitar", "chair", "watch")),
    )
    price, percent = draw.number(20, 300, 20), draw.pick((5, 10, 15, 20, 25, 30, 40, 50))
    off = price * percent // 100
    story = draw.pick(
        (
            f"A {thing} costs ${price} and is sold at {percent}% off.",
            f"In a sale, a ${price} {thing} is {percent}% cheaper.",
        )
    )
    work = [f"The discount is ${price} * {percent} / 100 = ${off}."]
    if steps == 1:
        return Worked(f"{story} How many dollars is the discount?", work, str(off))
    reduced = price - off
    work.append(f"The reduced price is ${price} - ${off} = ${reduced}.")
    if steps == 2:
        return Worked(f"{story} How many dollars does {name} pay for one?", work, str(reduced))
    count = draw.number(2, 6)
    total = count * reduced
    work.append(f"For {count} of them that is {count} * ${reduced} = ${total}.")
    if steps == 3:
        return Worked(f"{story} How many dollars does {name} pay for {count} of them?", work, str(total))
    fee = draw.number(5, 30)
    work.append(f"With delivery it is ${total} + ${fee} = ${total + fee}.")
    story += f" {name} orders {count} of them and pays ${fee} for delivery."
    question = f"{story} How many dollars is that in total?"
    return Worked(question, work, str(total + fee))


def ages(draw: Draw, steps: int) -> Worked:
    """Ages by differences and multiples, now and later."""
    young, middle, old = draw.several(NAMES, 3)
    age, gap, factor, years = draw.number(4, 15), draw.number(2, 12), draw.number(2, 3), draw.number(2, 9)
    second = age + gap
    story = f"{young} is {age} years old. {middle} is {gap} years older than {young}."
    work = [f"{middle} is {age} + {gap} = {second} years old."]
    if steps == 1:
        return Worked(f"{story} How old is {middle}?", work, str(second))
    if steps == 2:
        work.append(f"In {years} years {middle} will be {second} + {years} = {second + years} years old.")
        return Worked(f"{story} How old will {middle} be in {years} years?", work, str(second + years))
    third = factor * second
    story += f" {old} is {factor} times as old as {middle}."
    work.append(f"{old} is {factor} * {second} = {third} years old.")
    if steps == 3:
        work.append(f"The difference is {third} - {age} = {third - age} years.")
        return Worked(f"{story} How many years older is {old} than {young}?", work, str(third - age))
    work.append(f"In {years} years {old} will be {third} + {years} = {third + years} years old.")
    work.append(f"In {years} years {young} will be {age} + {years} = {age + years} years old.")
    if steps == 4:
        work.pop()
        return Worked(f"{story} How old will {old} be in {years} years?", work, str(third + years))
    sum_later = third + age + 2 * years
    work.append(f"Together they will be {third + years} + {age + years} = {sum_later} years old.")
    question = f"{story} How old will {young} and {old} be together in {years} years?"
    return Worked(question, work, str(sum_later))


def wages(draw: Draw, steps: int) -> Worked:
    """Pay by hours and days, with costs or a bonus."""
    name, job = (
        draw.pick(NAMES),
        draw.pick(("in a bakery", "at a library", "as a painter", "in a garden", "at a cafe")),
    )
    hours, days, wage = draw.number(3, 8), draw.number(2, 6), draw.number(9, 25)
    if steps == 1:
        pay = hours * wage
        question = f"{name} works {job} for {hours} hours at ${wage} an hour. How many dollars does {name} earn?"
        return Worked(question, [f"The pay is {hours} * ${wage} = ${pay}."], str(pay))
    total_hours = hours * days
    pay = total_hours * wage
    story = f"{name} works {job} {hours} hours a day for {days} days and earns ${wage} an hour."
    work = [
        f"The working time is {hours} * {days} = {total_hours} hours.",
        f"The pay is {total_hours} * ${wage} = ${pay}.",
    ]
    if steps >= 3:
        fare = draw.number(10, 40)
        story += f" The bus costs ${fare} in all these days together."
        work.append(f"After the bus there is ${pay} - ${fare} = ${pay - fare} left.")
        pay -= fare
    if steps >= 4:
        bonus = draw.number(20, 90, 5)
        story += f" At the end there is a bonus of ${bonus}."
        work.append(f"With the bonus that is ${pay} + ${bonus} = ${pay + bonus}.")
        pay += bonus
    return Worked(f"{story} How many dollars does {name} have from this work?", work, str(pay))


def stock(draw: Draw, steps: int) -> Worked:
    """A store's stock after sales and deliveries."""
    goods, place = draw.pick(GOODS), draw.pick(("A shop", "A warehouse", "A market stall", "A kiosk"))
    have = draw.number(40, 150)
    story, work = f"{place} has {have} {goods}.", []
    first_is_sale = draw.pick((True, False))
    for index in range(steps):
        sale = first_is_sale == (index % 2 == 0)
        moved = draw.number(5, max(5, have // 2)) if sale else draw.number(5, 60)
        left = have - moved if sale else have + moved
        verb = draw.pick(("It sells", "Customers buy")) if sale else draw.pick(("A delivery brings", "It receives"))
        story += f" {verb} {moved} {'of them' if sale else 'more'}."
        work.append(f"Then there are {have} {'-' if sale else '+'} {moved} = {left} {goods}.")
        have = left
    return Worked(f"{story} How many {goods} are there now?", work, str(have))
