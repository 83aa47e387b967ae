"""Evaluation on feature matrices: kNN, linear probe, intervals, the label-efficiency curve, its verdict, and health.

Nothing here knows pictures, runs or encoders: features come in as [n, d] tensors, figures go out as rows.
"""
