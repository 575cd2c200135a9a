from raybench.data.digits import Digits
class Hub(Digits): pass
class Mnist(Digits): pass
class FashionMnist(Digits): pass
class Cifar10(Digits): pass
class Cifar100(Digits): pass
class SVHN(Digits): pass
