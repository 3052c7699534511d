"""The backbone of the demos: small enough to train on a CPU, without published weights."""

nano_arch = dict(
    dim=32,
    depths=(2, 2, 2, 2),
    num_heads=(1, 2, 4, 8),
    mlp_ratio=3,
    layer_scale=None,
    drop_path_rate=0.0,
)
