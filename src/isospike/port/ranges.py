"""The range of values a site's code is stretched over, per channel.

Ranges decide the error of a port: too wide wastes levels, too narrow cuts values. Each channel gets
the bound h that minimises an estimate of its mean squared error,

(1)  error(h) = m (h + h')^2 + 1/n sum_i max(x_i - h, 0)^2 + 2 b^2 / n * exp(-max(h - max x, 0) / b)

with m the code's mean squared error for a unit range, h' the bound on the other side, n the sample
size. The second term is what the sample loses to clipping. The third is what text not yet seen may
lose: beyond the sample's largest value an exponential tail of mean excess b, estimated from the top
2 %, still holds a mass of about 1/n. Without it a high-resolution code cuts unseen outliers;
without the second, a low-resolution one wastes its few levels on them.
"""

import torch

# Candidate bounds, as multiples of the largest value seen; 1 is one of them, because the few huge
# activations of a transformer repeat the same value, which is then spelled exactly.
CANDIDATES = torch.linspace(0.25, 1.6, 55)
