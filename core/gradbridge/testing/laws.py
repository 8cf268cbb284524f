"""The laws by their numbers, in a few words."""

LAWS = {
    1: "right",
    2: "linear, repeatable",
    3: "re-entrant",
    4: "fresh",
    5: "pure",
    6: "borders",
    7: "never silently wrong",
    8: "one forward per gradient",
    9: "a function",
    10: "audited",
}
