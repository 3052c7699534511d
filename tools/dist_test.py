"""Evaluate on several GPUs: CONFIG CHECKPOINT GPUS [arguments of test]."""

from _dist_run import start

if __name__ == '__main__':
    start('test.py', __doc__, 'config', 'checkpoint')
