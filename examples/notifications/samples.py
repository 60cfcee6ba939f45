"""Mails that the generator makes up."""

from __future__ import annotations

import random

__all__ = ["sample"]

SAMPLES = [
    (
        "Noor Haddad",
        "Lunch on Thursday?",
        "The place by the canal has opened again. Half past twelve?\n\nNoor",
    ),
    (
        "Building services",
        "Lift B is back",
        "The lift in stairwell B is in service again. Thank you for your legs.",
    ),
    (
        "Jonas Weber",
        "Draft of the report",
        "Chapter two is new, the figures are final. Please be merciless.\n\nJonas",
    ),
    (
        "City library",
        "Two books are due on Monday",
        "“The Periodic Table” and “Sea Room” are due back. Renew them online.",
    ),
    (
        "Mei Tanaka",
        "Photos from the lake",
        "I put them in the shared folder. The one with the heron is yours.\n\nMei",
    ),
    ("Night build", "main is green", "1,204 tests passed in 6 min 41 s. Nothing was skipped."),
    ("Priya Raman", "Re: Re: the name of the thing", "I still say we call it what it does.\n\nP."),
    ("Bike shop", "Your wheel is true again", "Ready for collection until seven. Bring the other one, too."),
    (
        "Tomás Silva",
        "Can you swap Tuesday?",
        "My train is at nine, and yours is the only face they trust.\n\nTomás",
    ),
    ("Choir", "Rehearsal moved to room 4", "The piano in room 2 has opinions again. Same time, more stairs."),
    (
        "Ines Moreau",
        "Minutes",
        "Attached is what I think we said. Shout before five if you disagree.\n\nInes",
    ),
    ("Weather desk", "Storm warning for tonight", "Gusts up to 90 km/h after ten. Take in the geraniums."),
]


def sample() -> tuple[str, str, str]:
    """Sender, subject and text of some mail."""
    return random.choice(SAMPLES)
