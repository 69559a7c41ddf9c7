"""The functions that rationals have learned: as curves, formulas and pictures, with the inputs they see."""
