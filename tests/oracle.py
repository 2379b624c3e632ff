"""Backspace with plain lists, straight from the definition: what the vectorised code must equal."""

BK = -1  # stands for <backspace> in oracle action lists


def states(start, actions, floor=0):
    """The stack after 0, 1, ... actions; the start token is its first entry, at depth 0."""
    stack = [start]
    out = [list(stack)]
    for action in actions:
        if action != BK:
            stack.append(action)
        elif len(stack) - 1 > floor:
            stack.pop()
        out.append(list(stack))
    return out


def pack_p1(start, actions, floor=0):
    """Rows (token, position, attended rows) as the packing section defines them, with a stack."""
    tokens, positions, attends, stack = [start], [0], [[0]], [0]
    for i, action in enumerate(actions, start=1):
        if action != BK:
            tokens.append(action)
            positions.append(len(stack))
            attends.append([*stack, i])
            stack.append(i)
        else:
            if len(stack) - 1 > floor:
                stack.pop()
            top = stack[-1]
            tokens.append(tokens[top])
            positions.append(positions[top])
            attends.append([*stack[:-1], i])
    return tokens, positions, attends


def pack_p2(start, actions, floor=0):
    """Rows (token, position, attended rows) for tokens only, and the row of each state's top."""
    tokens, positions, attends, stack, pointers = [start], [0], [[0]], [0], [0]
    for action in actions:
        if action != BK:
            tokens.append(action)
            positions.append(len(stack))
            stack.append(len(tokens) - 1)
            attends.append(list(stack))
        elif len(stack) - 1 > floor:
            stack.pop()
        pointers.append(stack[-1])
    return tokens, positions, attends, pointers


def insert_noise(clean, noise):
    """`noise[i]` is the list of tokens inserted before token i. Returns (executed, labels)."""
    executed, labels = [], []
    for token, run in zip(clean, noise):
        for i, wrong in enumerate(run):
            executed.append(wrong)
            labels.append(token if i == 0 else BK)
        for _ in run:
            executed.append(BK)
            labels.append(BK)
        executed.append(token)
        labels.append(token)
    return executed, labels


def executed(prompt, floor, chosen, budget, new_tokens, eos):
    """What becomes of chosen actions: (actions, which of them a limit put there, what stands).

    The last of the budget is <eos>, and so is what follows the last token there is room for.
    """
    actions, forced, standing = [], [], list(prompt)
    for t, choice in enumerate(chosen[:budget]):
        full = len(standing) - len(prompt) == new_tokens
        action = eos if full or t == budget - 1 else choice
        actions.append(action)
        forced.append(action != choice)
        if action != BK:
            standing.append(action)
        elif len(standing) - 1 > floor:
            standing.pop()
        if action == eos:
            break
    return actions, forced, standing
