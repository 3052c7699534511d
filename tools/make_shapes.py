"""Write the generated data set of shapes: images with COCO instances and ADE-style label maps."""

import argparse

import _package  # noqa: F401

from gcvit_mm.cli import locked, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('root', metavar='ROOT', help='folder to write to')
    parser.add_argument('--train', type=int, default=800, metavar='N', help='training images')
    parser.add_argument('--val', type=int, default=120, metavar='N', help='validation images')
    parser.add_argument('--size', type=int, default=128, metavar='PX', help='height and width')
    parser.add_argument('--seed', type=int, default=0, metavar='S', help='seed of the scenes')
    args = parser.parse_args()
    from gcvit_mm.datasets.shapes import make_shapes

    with locked(args.root):
        root = make_shapes(
            args.root, train=args.train, val=args.val, size=args.size, seed=args.seed
        )
    print(
        f'{root}: {args.train} training and {args.val} validation images, '
        f'{args.size} x {args.size} px, seed {args.seed}'
    )


if __name__ == '__main__':
    run(main)
