"""Labelling the emotions of people in large video corpora.

The way of a clip: corpus -> video -> detection -> crops (together: extract, inside a fence) -> ledger.
The three composers that put it on Ray: preprocess, train, score.
"""
