"""Compare projectors: measure their costs, or train them with one recipe and compare their error rates."""
