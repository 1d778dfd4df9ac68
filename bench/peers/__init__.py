"""Contestants. To add one: write its module here and add the name to PEERS.

A module has

    version()                what runs, for the header
    Trainer(threads)         a network in training:
        .build(net, weights, x, y)   net: shapes.Net; weights: list of (w (O, I), b (O,)); x (N, I), y: whole batches
        .run(steps)                  that many steps over the batches in their order, a multiple of net.batches
        .loss()                      mean loss over all of x, y as it is now
        .close()                     give memory back
    predictor(net, weights, x)   a call without arguments that returns what the network makes of x; a module without one predicts nothing
    KERNELS                  {function: builder}: builder(*args, **options), given the arguments of the function of that
                             name in `fastbp.kernels`, returns a call without arguments that does the same work in this
                             library's fastest way, every output allocated beforehand, and returns the result

and is imported only in a process of its own (seat.py) that is pinned to its cores, with the thread counts of BLAS and
OpenMP set in the environment.
"""

PEERS = ("fastbp", "numpy", "torch", "jax", "sklearn")
