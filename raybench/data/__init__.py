"""Data sets. The table is the list of all that exist; each concept has a file of its own."""

from raybench.data.adapter import adapt
from raybench.data.base import Data, Dataset, Pool, Task
from raybench.data.digits import Digits
from raybench.data.generated import Gaussian, Quadratic, TeacherStudent
from raybench.data.hub import SVHN, Cifar10, Cifar100, FashionMnist, Hub, Mnist
from raybench.data.published import QuadraticDeep, TwoD
from raybench.data.text import Text, Tolstoi
from raybench.tables import Table

DATA: Table[Data] = Table(
    "data set",
    "raybench.data",
    {
        "digits": Digits,
        "teacher_student": TeacherStudent,
        "gaussian": Gaussian,
        "quadratic": Quadratic,
        "quadratic_deep": QuadraticDeep,
        "two_d": TwoD,
        "text": Text,
        "tolstoi": Tolstoi,
        "hub": Hub,
        "mnist": Mnist,
        "fashion_mnist": FashionMnist,
        "cifar10": Cifar10,
        "cifar100": Cifar100,
        "svhn": SVHN,
    },
    adapt,
)

__all__ = ["DATA", "Data", "Dataset", "Pool", "Task"]
