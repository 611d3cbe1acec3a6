"""Pages and plots of studies, and of how a layer's solve converges."""
