"""Train on several GPUs: CONFIG GPUS [arguments of train]."""

from _dist_run import start

if __name__ == '__main__':
    start('train.py', __doc__, 'config')
