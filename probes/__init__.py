"""Learnt estimators on hidden states and entropy; empty until the first probe lands."""
