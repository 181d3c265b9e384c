"""Sets of other projects as trajectories: one small module each, and this table.

An importer is `data.source` of a config, and what `python -m process_gen.data convert --from` reads.
What cannot be mapped is refused by name (`BadTrajectory`) and counted, never guessed.
"""

IMPORTERS = {
    "genref": "genref:GENREF",
    "unicot_reflection": "unicot:REFLECTION",
    "unicot_breakdown": "unicot:BREAKDOWN",
    "unireason": "interleaved:UNIREASON",
    "irg": "irg:IRG",
    "magicbrush": "magicbrush:MAGICBRUSH",
    "verl_omni": "verl_omni:SEQUENCES",
    "verl_omni_atoms": "verl_omni:ATOMS",
    "zebra_cot": "interleaved:ZEBRA_COT",
    "thinkmorph": "interleaved:THINKMORPH",
    "bagel_t2i": "bagel:T2I",
    "bagel_edit": "bagel:EDIT",
}
"""By name, a module and what it says of a set: how its rows are read, and their `Form`."""
