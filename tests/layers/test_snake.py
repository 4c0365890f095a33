import torch

from partita.layers.snake import Snake


def test_snake_is_its_formula_for_each_channel():
    """x + sin²(αx) / α, whose derivative is 1 + sin(2αx)."""
    snake, x = Snake(3), torch.randn(2, 3, 50, requires_grad=True)
    snake.alpha.data = torch.tensor([[0.5], [1.0], [-3.0]])
    alpha = torch.tensor([0.5, 1.0, -3.0])[:, None]
    y = snake(x)
    torch.testing.assert_close(y, x + torch.sin(alpha * x) ** 2 / alpha)
    y.sum().backward()
    torch.testing.assert_close(x.grad, 1 + torch.sin(2 * alpha * x.detach()))
    assert snake.alpha.grad.abs().min() > 0


def test_snake_starts_at_one():
    x = torch.randn(1, 4, 20)
    torch.testing.assert_close(Snake(4)(x), x + torch.sin(x) ** 2)
