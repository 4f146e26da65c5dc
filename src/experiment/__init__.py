"""Experiments on curation: data whose faults are known, cut by several rules, and what models make of each cut."""
