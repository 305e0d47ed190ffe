#include "textflag.h"

// func cloneVM(trap, a1, a2, a3 uintptr, c *child) (pid, errno uintptr)
//
// The child starts behind SVC on the stack it was given, with nothing on it: it finds c in a register, which the kernel
// keeps, and never returns.
TEXT ·cloneVM(SB), NOSPLIT, $16-56
	MOVD a1+8(FP), R0
	MOVD a2+16(FP), R1
	MOVD a3+24(FP), R2
	MOVD ZR, R3
	MOVD ZR, R4
	MOVD c+32(FP), R19
	MOVD trap+0(FP), R8
	SVC
	CBZ  R0, child
	CMN  $4095, R0
	BCC  parent
	NEG  R0, R0
	MOVD $-1, R1
	MOVD R1, pid+40(FP)
	MOVD R0, errno+48(FP)
	RET
parent:
	MOVD R0, pid+40(FP)
	MOVD ZR, errno+48(FP)
	RET
child:
	MOVD ZR, R29
	MOVD R19, 8(RSP)
	CALL ·run(SB)
	BRK
