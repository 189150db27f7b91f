"""What the scripts that measure a peer are told by engine.py, and by mixed.py."""
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


def add_mixed(parser):
    """What is measured, for mixed.py too."""
    parser.add_argument('--streams', type=int, default=4, help='answers that run')
    parser.add_argument('--context', type=int, default=128, help='tokens before each of them')
    parser.add_argument('--tokens', type=int, default=200, help='of each answer while no prompt is there')
    parser.add_argument('--prompt', type=int, default=2048, help='tokens of a long prompt')
    parser.add_argument('--prompts', type=int, default=3, help='how many, one after another')


def parse_mixed():
    parser = argparse.ArgumentParser()
    parser.add_argument('model')
    parser.add_argument('--threads', type=int, default=1)
    add_mixed(parser)
    return parser.parse_args()
