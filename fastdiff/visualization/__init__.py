"""Pictures, curves and run reports, drawn with Pillow alone."""

from fastdiff.visualization.chart import line_chart
from fastdiff.visualization.diffusion import visualize_diffusion_process
from fastdiff.visualization.images import image_grid, save_animation, save_each, save_images, to_uint8
from fastdiff.visualization.plots import loss_figures, plot_images, plot_loss, plot_training_curves
from fastdiff.visualization.report import write_report

__all__ = [
    "image_grid",
    "line_chart",
    "loss_figures",
    "plot_images",
    "plot_loss",
    "plot_training_curves",
    "save_animation",
    "save_each",
    "save_images",
    "to_uint8",
    "visualize_diffusion_process",
    "write_report",
]
