"""The reference implementations: every method in x-space, written straight from its definition.

Any float dtype, any device; weights come unpadded; x is [n, d] (hidden_states + residual) and every function
is row-wise. The programs in the basis's space are compared with these, and these with torch.autograd and
closed forms.
"""
