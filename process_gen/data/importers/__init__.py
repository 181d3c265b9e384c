"""Importers of other projects' data sets: one small module each, and this table.

A name in it is a value of `config.data.source` and of `python -m process_gen.data convert --from`. A row that
cannot be mapped raises `RecordError`, which the source turns into a `BadTrajectory`; nothing is guessed.
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
"""Name -> `module:attribute`; the attribute is a pair of the reader of rows and their `Form`."""
