"""What every script that measures a peer is told by engine.py."""
import argparse


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument('model')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--prompt', type=int, default=512)
    parser.add_argument('--output', type=int, default=64)
    parser.add_argument('--sequences', default='1,16')
    parser.add_argument('--repeats', type=int, default=3)
    return parser.parse_args()
